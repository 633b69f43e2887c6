"""Test puzzles that are training puzzles in disguise."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_reason.data.puzzle_splits import Fingerprinted, hash_grids
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
    first: dict[int, int] = {}
    for row, key in enumerate(_fingerprints(train)):
        first.setdefault(key, row)
    return [(first[key], row) for row, key in enumerate(_fingerprints(test)) if key in first]


def _fingerprints(dataset: PuzzleDataset) -> list[int]:
    """Return a number for each question; a chunk at a time, to bound the memory."""

    def of(questions: Tensor) -> Tensor:
        if isinstance(dataset.puzzle, Fingerprinted):
            return dataset.puzzle.fingerprints(questions)
        return hash_grids(questions)

    with torch.no_grad():
        return [n for chunk in dataset.questions.split(_CHUNK) for n in of(chunk).tolist()]
