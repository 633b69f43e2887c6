"""Made-up puzzles as splits that share nothing: which split owns a puzzle, and drawing until full.

A puzzle is told from others by its *fingerprint*, an int64 number that is equal for questions that
a symmetry of the puzzle turns into each other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from latent_reason.config import check_request
from latent_reason.data.order import Draws
from latent_reason.errors import DataError

SPLITS = ("train", "val", "test")
MAX_MISSES = 20_000
"""Draws in a row without a new puzzle after which a split counts as used up, by default."""
_MAX_CHUNK = 1024
_FIRST = 2**40  # far from the positions of a data order, which draws from the same seeds


@runtime_checkable
class Fingerprinted(Protocol):
    """A puzzle that can tell which questions are the same up to its symmetries."""

    def fingerprints(self, questions: Tensor) -> Tensor:
        """Return (B,) int64 numbers, equal for questions (B, S) equal up to symmetry."""
        ...


def hash_grids(grids: Tensor) -> Tensor:
    """Return (B,) int64: a hash of grids (B, S) of tokens below 256 as they are."""
    keys = _keys(grids.shape[1], grids.device)
    return keys.gather(1, grids.long().t()).sum(dim=0)


@lru_cache(maxsize=4)
def _keys(num_cells: int, device: torch.device) -> Tensor:
    """Return (num_cells, 256) int64, a random number for every token in every cell."""
    return Draws(torch.arange(num_cells, device=device), seed=0).bits(256)


def home_splits(fingerprints: Tensor) -> list[str]:
    """Return which of `SPLITS` owns each puzzle (B,): one in ten val, one in ten test."""
    return [{0: "val", 1: "test"}.get(n, "train") for n in (fingerprints % 10).tolist()]


def make_split(
    puzzle: Fingerprinted,
    draw: Callable[[Draws], tuple[Tensor, Tensor]],
    num: int,
    seed: int,
    split: str,
    wish: str = "",
    max_misses: int = MAX_MISSES,
) -> tuple[Tensor, Tensor]:
    """Draw puzzles until a split has enough, no two of them equal up to symmetry.

    The same arguments give the same puzzles, and a larger `num` appends to those of a smaller one.

    Args:
        puzzle: tells which questions are the same.
        draw: makes questions and answers (n, S) int64 from random numbers for C puzzles, where
            n <= C of them are usable; each must depend on its own random numbers only.
        num: puzzles wanted, 1 or more.
        seed: any integer.
        split: one of `SPLITS`.
        wish: what else was asked of the puzzles, for the message, such as " of min_length 9".
        max_misses: draws in a row without a new puzzle after which the split counts as used up.

    Returns:
        questions and answers, (num, S) int64 each.

    Raises:
        ConfigError: for a split or a number that is not possible.
        DataError: if no more puzzles of the split are found.
    """
    check_request(split, num, SPLITS)
    seen: set[int] = set()
    kept: list[tuple[Tensor, Tensor]] = []
    start, chunk, misses = _FIRST, 64, 0
    while len(seen) < num:
        questions, answers = draw(Draws(torch.arange(start, start + chunk), seed))
        prints = puzzle.fingerprints(questions)
        new = []
        for row, (key, home) in enumerate(zip(prints.tolist(), home_splits(prints), strict=True)):
            if home == split and key not in seen and len(seen) < num:
                seen.add(key)
                new.append(row)
        kept.append((questions[new], answers[new]))
        misses = 0 if new else misses + chunk
        if misses >= max_misses:
            raise DataError(
                f"found only {len(seen)} different puzzles{wish} for split {split!r}, not {num}; "
                "ask for fewer, larger or easier ones"
            )
        start, chunk = start + chunk, min(2 * chunk, _MAX_CHUNK)
    return torch.cat([q for q, _ in kept]), torch.cat([a for _, a in kept])
