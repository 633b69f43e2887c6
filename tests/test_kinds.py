"""Puzzles by name."""

from __future__ import annotations

import pytest

from latent_reason.data.kinds import find_puzzle
from latent_reason.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "shape", "vocab_size"),
    [
        ("sudoku-6x6", (6, 6), 8),
        ("maze-11x9", (11, 9), 6),
        ("perfect-maze-5x5", (5, 5), 6),
        ("sorting-7", (1, 7), 11),
        ("state-tracking-3", (1, 3), None),
    ],
)
def test_a_name_gives_kind_and_size(
    name: str, shape: tuple[int, int], vocab_size: int | None
) -> None:
    puzzle = find_puzzle(name)
    assert (puzzle.height, puzzle.width) == shape
    assert vocab_size in (None, puzzle.vocab_size)
    questions, answers = puzzle.generate(4, seed=0, split="train")
    assert questions.shape == answers.shape == (4, puzzle.num_cells)
    valid = puzzle.valid(questions, answers)
    assert valid is not None and valid.all()


def test_arc_is_known_and_has_no_generator() -> None:
    puzzle = find_puzzle("arc")
    assert (puzzle.num_cells, puzzle.vocab_size) == (900, 12)
    with pytest.raises(ConfigError, match="puzzle arc: has no generator"):
        puzzle.generate(1, seed=0)
    with pytest.raises(ConfigError, match="state-tracking-N .*, arc, or module:Name"):
        find_puzzle("arc-agi")


@pytest.mark.parametrize("name", ["sudoku-5x5", "sudoku-9x4", "sorting", "maze-9", "chess-8x8"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"puzzle: got '{name}', expected"):
        find_puzzle(name)
