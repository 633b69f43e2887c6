"""Whether a puzzle keeps what `Puzzle` promises: its groups, its symmetries, its rule on data."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_reason.data.order import Draws
from latent_reason.data.puzzles import PAD, Puzzle, PuzzleDataset, Symmetry
from latent_reason.errors import ConfigError, DataError

NUM_DRAWS = 16
"""Symmetries that are tried, each on a row of the data."""


def require_parts(puzzle: Puzzle) -> None:
    """Raise ConfigError, naming the class, unless groups and symmetries are of the right form."""
    name, cells = type(puzzle).__name__, puzzle.num_cells
    groups, what = puzzle.groups(), f"puzzle: {name}.groups()"
    of_cells = isinstance(groups, Tensor) and groups.shape[1:] == (cells,) and len(groups)
    if not of_cells or groups.dtype != torch.bool:
        raise ConfigError(f"{what} is {_form(groups)}, expected bool (G, {cells}), G 1 or more")
    if not groups.any(dim=1).all():
        raise ConfigError(f"{what} has an empty group; give each a cell")
    symmetry = puzzle.symmetry(Draws(torch.arange(NUM_DRAWS), seed=0))
    if symmetry is None:
        return
    if not isinstance(symmetry, Symmetry):
        kind = type(symmetry).__name__
        raise ConfigError(f"puzzle: {name}.symmetry() gives a {kind}, expected Symmetry or None")
    for field, size in (("cells", cells), ("symbols", puzzle.vocab_size)):
        numbers, expected = getattr(symmetry, field), f"int64 {(NUM_DRAWS, size)}"
        what = f"puzzle: {name}.symmetry() has {field}"
        if (found := _form(numbers)) != expected:
            raise ConfigError(f"{what} of {found}, expected {expected} for {NUM_DRAWS} draws")
        if not (numbers.sort(dim=1).values == torch.arange(size)).all():
            raise ConfigError(f"{what} that are no permutation of 0 to {size - 1} in each row")
    fixed = 2 if puzzle.blank else 1
    if not (symmetry.symbols[:, :fixed] == torch.arange(fixed)).all():
        raise ConfigError(f"puzzle: {name}.symmetry() renames padding or the blank; keep both")


def rule_says(puzzle: Puzzle, questions: Tensor, answers: Tensor) -> Tensor | None:
    """Return `puzzle.valid` of grids (B, S), (B,) bool or None.

    Raises:
        ConfigError: it gives something else.
    """
    valid = puzzle.valid(questions, answers)
    if valid is not None and (found := _form(valid)) != f"bool {(len(questions),)}":
        name = type(puzzle).__name__
        raise ConfigError(
            f"puzzle: {name}.valid() is {found} for {len(questions)} grids, expected bool "
            f"{(len(questions),)} or None"
        )
    return valid


def require_sound(dataset: PuzzleDataset) -> None:
    """Refuse puzzles that ask nothing, and a rule that does not know its own answers.

    The rule must say of some of the first rows that they are right, as they are and after a
    symmetry.

    Raises:
        DataError: naming the class of the puzzle and the row.
        ConfigError: the rule gives no (B,) bool.
    """
    puzzle, name = dataset.puzzle, type(dataset.puzzle).__name__
    asked = (dataset.answers != PAD).any(dim=1)
    if not asked.all():
        row = int(asked.int().argmin())
        raise DataError(f"{dataset.place(row)}: no cell of the answer is asked; give one")
    draws = torch.arange(NUM_DRAWS)
    rows = draws % len(dataset)
    questions, answers = dataset.questions[rows].long(), dataset.answers[rows].long()
    symmetry = puzzle.symmetry(Draws(draws, seed=0))
    for change in ("", " after a symmetry"):
        valid = rule_says(puzzle, questions, answers)
        if valid is not None and not valid.all():
            place = dataset.place(int(rows[int(valid.int().argmin())]))
            raise DataError(
                f"{place}: the answer is wrong{change} by {name}.valid(); correct "
                + (f"{name}.symmetry() or valid()" if change else "one of them")
            )
        if symmetry is None:
            return
        questions, answers = symmetry.apply(questions), symmetry.apply(answers)


def _form(value: object) -> str:
    """Return dtype and shape of a tensor in words, else what a value is."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
