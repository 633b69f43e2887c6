"""Datasets of puzzles from files and the Hugging Face Hub, every row checked.

A CSV file (plain or gzip) has a header with the columns `question` and `answer`, grids in the
alphabet of the puzzle, row by row; other columns are ignored. "." is a blank too, and small letters
are capital ones, where the alphabet has no other use for them. Arrays hold the numbers of the
symbols (position in the alphabet: Sudoku digits as they are, 0 for a blank) and -1 for cells
outside the grid or not asked. Messages name lines of a CSV file (the header is line 1), and rows
of arrays and Hub data sets from 1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from latent_reason.config import check
from latent_reason.data.hub import refuse_no_name
from latent_reason.data.puzzle_check import require_sound, rule_says
from latent_reason.data.puzzle_sources import HINT, MAX_ROWS, Rows, open_source
from latent_reason.data.puzzle_splits import hash_grids
from latent_reason.data.puzzles import PAD, Puzzle, PuzzleDataset
from latent_reason.errors import ConfigError, DataError

MAX_SOLVER_CELLS = 81
"""Larger puzzles are not searched for their solutions unasked: that may take very long."""
MAX_CHECKED = 200
"""Rows searched for several solutions unasked; hard 9x9 Sudokus take up to some 20 ms each."""
_CHUNK = 8192


@runtime_checkable
class Solver(Protocol):
    """A puzzle that can find the answers of a question."""

    def solve(self, question: Sequence[int], limit: int = 2) -> list[list[int]]:
        """Return up to `limit` answers (S tokens each) of a question (S tokens)."""
        ...


def read_puzzles(
    source: str | os.PathLike[str], puzzle: Puzzle, split: str = "train", limit: int | None = None
) -> PuzzleDataset:
    """Read puzzles and check every row.

    Args:
        source: a .csv or .csv.gz file; a .npy file (N, 2, S) of questions and answers; a folder
            with SPLIT.csv, SPLIT.csv.gz or, also inside a folder SPLIT, questions.npy and
            answers.npy, (N, S) or (N, height, width) each; or the name of a Hub data set, such
            as "sapientinc/sudoku-extreme".
        puzzle: the kind.
        split: which split of a folder or Hub data set; a file has only one.
        limit: keep only the first so many rows; few of the others are read.

    Raises:
        ConfigError: for a limit below 1, or a rule of the puzzle that gives no (B,) bool.
        DataError: if there is no such source or split, or a row is not usable; the message is
            "SOURCE:ROW: what is wrong".
    """
    check(limit is None or limit >= 1, "limit", limit, "1 or more")
    if not os.fspath(source):  # which is the current folder to a Path
        refuse_no_name("", HINT)
    rows, chunks = open_source(Path(source), puzzle, split)
    questions, answers = [], []
    for chunk in chunks:
        left = (MAX_ROWS if limit is None else limit) - rows.num
        if limit is None and len(chunk[0]) > left:
            raise DataError(f"{rows.source}: more than {MAX_ROWS:,} rows; split it or set a limit")
        question, answer = (grids[:left] for grids in chunk)
        _check_answers(rows, puzzle, question, answer)
        questions.append(torch.from_numpy(question))
        answers.append(torch.from_numpy(answer))
        rows.num += len(question)
        if rows.num == limit:
            break
    if not rows.num:
        raise DataError(f"{rows.source}: no rows; give at least one puzzle")
    dataset = PuzzleDataset(puzzle, torch.cat(questions), torch.cat(answers))
    dataset.sources = ((rows.source, rows.first, rows.num),)
    require_sound(dataset)
    _refuse_duplicates(dataset)
    return dataset


def join(parts: Sequence[PuzzleDataset]) -> PuzzleDataset:
    """Return the puzzles of several files as one dataset.

    Raises:
        DataError: two files hold the same question.
    """
    if len(parts) == 1:
        return parts[0]
    questions = torch.cat([part.questions for part in parts])
    answers = torch.cat([part.answers for part in parts])
    whole = PuzzleDataset(parts[0].puzzle, questions, answers)
    whole.sources = tuple(source for part in parts for source in part.sources)
    _refuse_duplicates(whole)
    return whole


def subsample(dataset: PuzzleDataset, num: int, seed: int) -> PuzzleDataset:
    """Return `num` puzzles drawn without replacement, a pure function of size, `num` and seed.

    Raises:
        DataError: if there are fewer, or `num` is below 1.
    """
    if not 1 <= num <= len(dataset):
        raise DataError(f"cannot draw {num} of {len(dataset)} puzzles; ask for 1 to that many")
    rows = np.random.default_rng(seed).choice(len(dataset), size=num, replace=False)
    return dataset.subset(torch.from_numpy(rows))


def check_unique(dataset: PuzzleDataset) -> list[tuple[int, int]]:
    """Find questions that do not have exactly one solution.

    Returns:
        (row from 0, number of solutions: 0, or 2 for several) of each.

    Raises:
        ConfigError: if the puzzle has no solver.
    """
    puzzle = dataset.puzzle
    if not isinstance(puzzle, Solver):
        raise ConfigError(f"puzzle {puzzle.name}: has no solver to count solutions with")
    counts = [len(puzzle.solve(question, limit=2)) for question in dataset.questions.tolist()]
    return [(row, count) for row, count in enumerate(counts) if count != 1]


def refuse_several_solutions(dataset: PuzzleDataset) -> int:
    """Refuse puzzles that do not have exactly one solution.

    The first `MAX_CHECKED` are looked at; none where the puzzle has no solver that is fast enough.
    `python -m latent_reason.data check-puzzles` looks at all.

    Returns:
        how many were looked at.

    Raises:
        DataError: naming the first.
    """
    if not isinstance(dataset.puzzle, Solver) or dataset.puzzle.num_cells > MAX_SOLVER_CELLS:
        return 0
    num = min(len(dataset), MAX_CHECKED)
    for row in range(num):
        if check_unique(dataset.subset(torch.tensor([row]))):
            raise DataError(
                f"{dataset.place(row)}: the question has several solutions; remove it "
                "(python -m latent_reason.data check-puzzles lists all such rows)"
            )
    return num


def _check_answers(rows: Rows, puzzle: Puzzle, questions: np.ndarray, answers: np.ndarray) -> None:
    """Refuse rows that ask nothing, answers with blanks, with changed clues, or against the rule.

    Questions and answers are (n, S) tokens each.
    """
    rows.require(
        (answers != PAD).any(axis=1),
        lambda at: "no cell of the answer is asked; give a symbol for at least one",
    )
    if puzzle.blank:
        blank = puzzle.alphabet.index(puzzle.blank) + 1
        open_cells = answers == blank
        rows.require(
            ~open_cells.any(axis=1),
            lambda at: f"cell {open_cells[at].argmax() + 1} of the answer is blank; fill it in",
        )
        given = (questions != blank) & (questions != PAD)
        changed = given & (answers != PAD) & (questions != answers)
        rows.require(
            ~changed.any(axis=1),
            lambda at: f"cell {changed[at].argmax() + 1} of the answer changes the clue",
        )
    valid = rule_says(puzzle, torch.from_numpy(questions), torch.from_numpy(answers))
    if valid is not None:
        rows.require(valid.numpy(), lambda at: _conflict(puzzle, questions[at], answers[at]))


def _conflict(puzzle: Puzzle, question: np.ndarray, answer: np.ndarray) -> str:
    """Say what is wrong with an answer (S,) by the rule."""
    found = puzzle.conflicts(question.tolist(), answer.tolist())
    name = type(puzzle).__name__
    return f"wrong answer: {found[0] if found else f'{name}.valid() but not conflicts() says so'}"


def _refuse_duplicates(dataset: PuzzleDataset) -> None:
    """Refuse a question that comes twice."""
    keys = torch.cat([hash_grids(part) for part in dataset.questions.split(_CHUNK)]).numpy()
    order = keys.argsort(kind="stable")
    twins = (keys[order[1:]] == keys[order[:-1]]).nonzero()[0]
    first, again = torch.from_numpy(order[twins]), torch.from_numpy(order[twins + 1])
    same = (dataset.questions[first] == dataset.questions[again]).all(dim=1)
    if same.any():
        first, again = min(
            zip(first[same].tolist(), again[same].tolist(), strict=True), key=lambda pair: pair[1]
        )
        agree = torch.equal(dataset.answers[first], dataset.answers[again])
        raise DataError(
            f"{dataset.place(again)}: the same question as in {dataset.place(first)}, "
            f"with {'the same' if agree else 'another'} answer; remove one"
        )
