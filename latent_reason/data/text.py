"""Text examples as tensors: prompts for the base, answers as labels for the slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from latent_reason.data.order import rows_at
from latent_reason.data.tasks import Example
from latent_reason.errors import DataError
from latent_reason.losses import IGNORE_INDEX
from latent_reason.prompts import pad, pad_prompts


def encode_answer(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Return the tokens of " answer", as it stands after other text, and the end token.

    Raises:
        DataError: if the tokenizer loses characters of the answer.
    """
    before, whole, ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (":", f": {answer}", f" {answer}")
    )
    if whole[: len(before)] == before:  # SentencePiece puts a space of its own before every text
        ids = whole[len(before) :]
    back = str(tokenizer.decode(ids, skip_special_tokens=True))
    if back.split() != answer.split():
        raise DataError(
            f"this base's tokenizer writes the answer {answer!r} as {back!r}; "
            "use characters that it knows, or another base"
        )
    return [*ids, tokenizer.eos_token_id]


@dataclass
class TextDataset:
    """Tokenised examples, padded on the right.

    input_ids and attention_mask: (N, T) int64. labels: (N, K) int64, the answer and its end
    token, then -100. examples: the rows they came from.
    """

    examples: Sequence[Example]
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def num_tokens(self) -> int:
        """T, tokens of the longest prompt."""
        return self.input_ids.shape[1]

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Gather (B,) rows: input_ids and attention_mask (B, T), labels (B, K)."""
        return {
            "input_ids": self.input_ids[rows],
            "attention_mask": self.attention_mask[rows],
            "labels": self.labels[rows],
        }

    def at(self, positions: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the training examples at positions (B,) of the endless data order."""
        return self.batch(rows_at(positions, seed, len(self)))

    @classmethod
    def build(
        cls,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        num_slots: int | None = None,
        source: str = "examples",
    ) -> TextDataset:
        """Tokenise examples.

        Args:
            examples: at least one.
            tokenizer: of the base.
            num_slots: K; None takes what the longest answer needs.
            source: file name for error messages; row i is line i + 1.

        Raises:
            DataError: for an answer that does not fit the slots or that the tokenizer cannot
                write, or a prompt without tokens; the message names file and line.
        """
        prompts, answers = [], []
        for line, example in enumerate(examples, start=1):
            try:
                answers.append(encode_answer(tokenizer, example.answer))
            except DataError as error:
                raise DataError(f"{source}:{line}: {error}") from error
            prompts.append(tokenizer(example.prompt)["input_ids"])
            if not prompts[-1]:
                raise DataError(f"{source}:{line}: the prompt has no tokens; give some text")
            if num_slots is not None and len(answers[-1]) > num_slots:
                raise DataError(
                    f"{source}:{line}: the answer needs {len(answers[-1])} slots with its end "
                    f"token, there are {num_slots}; shorten it or give more (num_slots)"
                )
        labels = pad(answers, IGNORE_INDEX)
        missing = (num_slots or labels.shape[1]) - labels.shape[1]
        labels = torch.nn.functional.pad(labels, (0, missing), value=IGNORE_INDEX)
        return cls(examples, **pad_prompts(prompts, tokenizer.eos_token_id), labels=labels)
