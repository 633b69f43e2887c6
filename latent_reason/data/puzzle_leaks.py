"""Test puzzles that are training puzzles in disguise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from latent_reason.data.puzzle_splits import SPLITS, Fingerprinted, hash_grids
from latent_reason.data.puzzles import PuzzleDataset
from latent_reason.errors import DataError

_CHUNK = 1024


def find_puzzle_leaks(train: PuzzleDataset, test: PuzzleDataset) -> list[tuple[int, int]]:
    """Find the questions of `test` that `train` has too, turned, renamed or however disguised.

    Two questions are the same if their fingerprints (64 bits) are, so that every question that a
    symmetry makes of another is found. The reverse is not proven: where `Sudoku.fingerprints`
    cannot tell two puzzles apart they count as the same. Questions of a puzzle that has no
    `fingerprints` are compared as they are.

    Returns:
        (row of train, row of test) counted from 0, for every row of `test` that occurs in `train`,
        with the first row of `train` that matches it.

    Raises:
        DataError: if the datasets are of different puzzles.
    """
    kinds = [(p.name, p.height, p.width, p.alphabet) for p in (train.puzzle, test.puzzle)]
    if kinds[0] != kinds[1]:
        names = " and ".join(f"{name} {height} x {width}" for name, height, width, _ in kinds)
        raise DataError(f"leak check: the datasets are of different puzzles, {names}")
    return _matches(_fingerprints(train), _fingerprints(test))


def leaks_of_splits(
    data: Mapping[str, PuzzleDataset],
) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Return the leaks from train and val into test, and from train into val, by the two names."""
    prints = {split: _fingerprints(data[split]) for split in SPLITS}
    pairs = (("train", "test"), ("val", "test"), ("train", "val"))
    return {(a, b): _matches(prints[a], prints[b]) for a, b in pairs}


def _matches(train: Sequence[int], test: Sequence[int]) -> list[tuple[int, int]]:
    first: dict[int, int] = {}
    for row, key in enumerate(train):
        first.setdefault(key, row)
    return [(first[key], row) for row, key in enumerate(test) if key in first]


def _fingerprints(dataset: PuzzleDataset) -> list[int]:
    """Return a number for each question; a chunk at a time, to bound the memory."""

    def of(questions: Tensor) -> Tensor:
        if isinstance(dataset.puzzle, Fingerprinted):
            return dataset.puzzle.fingerprints(questions)
        return hash_grids(questions)

    with torch.no_grad():
        return [n for chunk in dataset.questions.split(_CHUNK) for n in of(chunk).tolist()]
