"""The leak check across datasets of grid puzzles."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_reason.data.grid_tasks import Sorting, StateTracking
from latent_reason.data.maze import Maze
from latent_reason.data.order import Draws
from latent_reason.data.puzzle_leaks import find_puzzle_leaks
from latent_reason.data.puzzles import Puzzle, PuzzleDataset
from latent_reason.data.sudoku import Sudoku
from latent_reason.errors import DataError

KINDS = {
    "sudoku9": Sudoku(3, 3),
    "sudoku6": Sudoku(2, 3),
    "maze": Maze(9, 9),
    "oblong": Maze(7, 9),
    "sorting": Sorting(8),
    "tracking": StateTracking(6, 4),
}


@cache
def made(kind: str) -> PuzzleDataset:
    puzzle = KINDS[kind]
    options = {"clues": (26, 34)} if kind == "sudoku9" else {}
    return PuzzleDataset(puzzle, *puzzle.generate(24, seed=1, **options))


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("kind", KINDS)
def test_disguised_questions_are_found_and_no_others(kind: str, seed: int) -> None:
    data = made(kind)
    train = data.subset(torch.arange(16))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    questions = data.questions[shuffled].long()
    disguised = data.puzzle.symmetry(Draws(torch.arange(24), seed)).apply(questions)
    test = PuzzleDataset(data.puzzle, disguised, data.answers[shuffled])
    want = [(row, place) for place, row in enumerate(shuffled.tolist()) if row < 16]
    assert find_puzzle_leaks(train, test) == want


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_with_one_cell_changed_is_another(kind: str) -> None:
    data = made(kind)
    question = data.questions[:1].long()
    cell = int((question[0] > 1).nonzero()[0])  # a clue, an open cell, a digit or a move
    changed = question.clone()
    changed[0, cell] = 1
    other = PuzzleDataset(data.puzzle, changed, data.answers[:1])
    assert find_puzzle_leaks(data, other) == []
    assert find_puzzle_leaks(other, data) == []


def test_the_first_row_is_named_for_every_test_row() -> None:
    data = made("maze")
    train = data.subset(torch.tensor([0, 1, 0]))
    assert find_puzzle_leaks(train, data.subset(torch.tensor([5, 0, 0]))) == [(0, 1), (0, 2)]


def test_datasets_larger_than_a_chunk() -> None:
    puzzle = Sorting(9)
    train = PuzzleDataset(puzzle, *puzzle.generate(3000, seed=0))
    rows = torch.tensor([2999, 7, 1500])
    assert find_puzzle_leaks(train, train.subset(rows)) == [(2999, 0), (7, 1), (1500, 2)]
    test = PuzzleDataset(puzzle, *puzzle.generate(3000, seed=0, split="test"))
    assert find_puzzle_leaks(train, test) == []


def test_a_puzzle_without_fingerprints_is_compared_as_it_is() -> None:
    class Copying(Puzzle):
        name, height, width, alphabet = "copying", 1, 3, "abc"

    grids = torch.tensor([[1, 2, 3], [3, 2, 1], [1, 1, 2]])
    train = PuzzleDataset(Copying(), grids, grids)
    test = train.subset(torch.tensor([2, 0]))
    assert find_puzzle_leaks(train, test) == [(2, 0), (0, 1)]
    turned = PuzzleDataset(Copying(), grids[2:].flip(1), grids[2:])
    assert find_puzzle_leaks(train, turned) == []


def test_different_puzzles_are_not_compared() -> None:
    with pytest.raises(DataError, match="maze 9 x 9 and maze 7 x 9"):
        find_puzzle_leaks(made("maze"), made("oblong"))
