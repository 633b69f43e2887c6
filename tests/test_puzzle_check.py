"""Puzzles that do not keep what they promise: each is named by its class, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latent_reason.data.kinds import find_puzzle
from latent_reason.data.puzzle_check import require_parts, require_sound
from latent_reason.data.puzzle_files import read_puzzles
from latent_reason.data.puzzles import Puzzle, PuzzleDataset, Symmetry
from latent_reason.errors import ConfigError, DataError

CELLS, SYMBOLS = torch.arange(4).repeat(16, 1), torch.arange(4).repeat(16, 1)
TURNED, SWAPPED = CELLS.flip(1), SYMBOLS[:, [0, 1, 3, 2]]


class Rising(Puzzle):
    """The answer is the question; its symbols must not fall from cell to cell."""

    name, height, width, alphabet, blank = "rising", 1, 4, ".ab", "."

    def valid(self, questions: torch.Tensor, answers: torch.Tensor) -> torch.Tensor | None:
        return (answers.diff(dim=1) >= 0).all(dim=1)

    def conflicts(self, question: Any, answer: Any) -> list[str]:
        return ["it falls"] if list(answer) != sorted(answer) else []


def made(method: str, value: Any) -> Puzzle:
    """Return a puzzle of which a method gives this."""
    return type("Own", (Rising,), {method: lambda *_: value})()


@pytest.mark.parametrize("name", ["sudoku-4x4", "sudoku-6x6", "maze-5x6", "sorting-7", "arc"])
def test_ours_are_sound(name: str) -> None:
    puzzle = find_puzzle(name)
    require_parts(puzzle)
    if name != "arc":
        require_sound(PuzzleDataset(puzzle, *puzzle.generate(5, seed=0)))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (None, "is a NoneType, expected bool [(]G, 4[)]"),
        (torch.ones(4, dtype=torch.bool), r"is bool \(4,\), expected"),
        (torch.ones(2, 3, dtype=torch.bool), r"is bool \(2, 3\), expected"),
        (torch.ones(2, 4), r"is float32 \(2, 4\), expected"),
        (torch.ones(0, 4, dtype=torch.bool), r"is bool \(0, 4\), expected"),
        (torch.tensor([[True] * 4, [False] * 4]), "has an empty group; give each a cell"),
    ],
)
def test_groups_are_sets_of_cells(groups: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^puzzle: Own.groups\(\) {message}"):
        require_parts(made("groups", groups))


@pytest.mark.parametrize(
    ("symmetry", "message"),
    [
        ((CELLS, SYMBOLS), "gives a tuple, expected Symmetry or None"),
        (Symmetry(CELLS[0], SYMBOLS), r"has cells of int64 \(4,\), expected int64 \(16, 4\)"),
        (Symmetry(CELLS, SYMBOLS[:, :3]), r"has symbols of int64 \(16, 3\), expected int64"),
        (Symmetry(CELLS.int(), SYMBOLS), "has cells of int32"),
        (Symmetry(CELLS.clamp(max=2), SYMBOLS), "has cells that are no permutation of 0 to 3"),
        (Symmetry(CELLS, SYMBOLS.clamp(max=2)), "has symbols that are no permutation of 0 to 3"),
        (Symmetry(CELLS, SYMBOLS.flip(1)), "renames padding or the blank; keep both"),
        (Symmetry(CELLS, SYMBOLS[:, [0, 2, 1, 3]]), "renames padding or the blank"),
    ],
)
def test_symmetries_are_permutations(symmetry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^puzzle: Own.symmetry\(\) {message}"):
        require_parts(made("symmetry", symmetry))
    require_parts(made("symmetry", Symmetry(TURNED, SWAPPED)))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text("question,answer\n...b,aaab\n...a,aaaa\n")
    return tmp_path / "rows.csv"


def test_the_rule_holds_after_a_symmetry(rows: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_puzzles(rows, made("symmetry", Symmetry(TURNED, SYMBOLS)))
    assert str(caught.value) == (
        f"{rows}:2: the answer is wrong after a symmetry by Own.valid(); "
        "correct Own.symmetry() or valid()"
    )
    assert len(read_puzzles(rows, made("symmetry", Symmetry(TURNED, SWAPPED)))) == 2
    puzzle = type("Free", (Rising,), {"symmetry": lambda *_: Symmetry(TURNED, SYMBOLS)})()
    puzzle.valid = lambda *_: None
    assert len(read_puzzles(rows, puzzle)) == 2


@pytest.mark.parametrize(
    ("valid", "found"),
    [
        (torch.ones(2, 4, dtype=torch.bool), r"bool \(2, 4\)"),
        (torch.ones(2), r"float32 \(2,\)"),
        (True, "a bool"),
    ],
)
def test_the_rule_gives_one_truth_for_each_grid(valid: Any, found: str, rows: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^puzzle: Own.valid\(\) is {found} for 2 grids, exp"):
        read_puzzles(rows, made("valid", valid))


def test_a_rule_that_does_not_say_why_is_named(rows: Path) -> None:
    with pytest.raises(DataError, match=r":2: wrong answer: Own.valid\(\) but not conflicts"):
        read_puzzles(rows, made("valid", torch.tensor([False, True])))


def test_made_puzzles_are_checked_too() -> None:
    asked = torch.tensor([[2, 2, 3, 3], [2, 2, 2, 3]])
    with pytest.raises(DataError, match="^puzzle 2: no cell of the answer is asked; give one"):
        require_sound(PuzzleDataset(Rising(), asked, asked * torch.tensor([[1], [0]])))
    with pytest.raises(DataError, match=r"^puzzle 1: the answer is wrong by Rising.valid\(\)"):
        require_sound(PuzzleDataset(Rising(), asked, asked.flip(1)))
