"""Options of the base's own `generate`, and where its answers end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from latent_reason.errors import ConfigError

REFUSED = (
    "cache_implementation",
    "generation_config",
    "past_key_values",
    "return_dict_in_generate",
    "use_cache",
)
"""Options that a caller cannot choose: the cache holds prompt and soft tokens, the answer is a
tensor."""


def generation_options(
    base: GenerationConfig, eos_token_id: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Return arguments of `generate`: greedy, whatever a base is set to, but for `options`.

    Args:
        base: settings of the base; of them only its end tokens count, and those of sampling.
        eos_token_id: of the tokenizer, an end too.
        options: of the caller.

    Raises:
        ConfigError: for an option of `REFUSED`.
    """
    if bad := [name for name in REFUSED if name in options]:
        raise ConfigError(f"generate: {bad[0]} cannot be used here; leave it out")
    own_ends = base.eos_token_id if isinstance(base.eos_token_id, list) else [base.eos_token_id]
    return {
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "guidance_scale": None,
        "min_length": 0,
        "min_new_tokens": None,
        "eos_token_id": [eos_token_id, *(end for end in own_ends if end is not None)],
        "pad_token_id": eos_token_id,
        "use_cache": True,
        "cache_implementation": None,
        "return_dict_in_generate": False,
    } | options


def after_end(tokens: Tensor, ends: int | list[int] | None, eos_token_id: int) -> Tensor:
    """Return tokens (B, N) with `eos_token_id` from the first of the `ends` on."""
    if ends is None:
        return tokens
    ended = torch.isin(tokens, torch.as_tensor(ends, device=tokens.device)).cumsum(dim=1) > 0
    return tokens.masked_fill(ended, eos_token_id)
