"""Prompts: padded rows of tokens, and what one pass of the base over them leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@dataclass
class PromptStates:
    """What one pass of the base over B prompts leaves behind.

    states: (B, T, F) fp32, the chosen layers, each RMS-normalised without scale, concatenated.
    attention_mask: (B, T). keys_values: per layer two (B, heads, T, width) tensors, read-only.
    """

    states: Tensor
    attention_mask: Tensor
    keys_values: list[tuple[Tensor, Tensor]]

    @property
    def cache_mask(self) -> Tensor:
        """(B, T), padding first: the order of the tokens in `fill_cache`."""
        return self.attention_mask.sort(dim=1).values

    def fill_cache(self) -> DynamicCache:
        """Return a new cache that holds the prompts; their own keys and values stay untouched.

        Padding goes to the front: a sliding window counts places in the cache, and padding
        between a prompt and what follows it would use them up.
        """
        cache = DynamicCache()
        order = self.attention_mask.argsort(dim=1, stable=True)[:, None, :, None]
        for index, (keys, values) in enumerate(self.keys_values):
            cache.update(keys.take_along_dim(order, 2), values.take_along_dim(order, 2), index)
        return cache


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Stack ragged rows of integers, padded on the right: (N, longest) int64."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)


def pad_prompts(rows: Sequence[Sequence[int]], eos_token_id: int) -> dict[str, Tensor]:
    """Return input_ids, padded by the end token, and attention_mask of prompts, (N, T) int64."""
    masks = [[1] * len(row) for row in rows]
    return {"input_ids": pad(rows, eos_token_id), "attention_mask": pad(masks, 0)}
