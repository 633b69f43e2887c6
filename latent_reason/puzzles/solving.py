"""`solve`: one puzzle from a text, the model's answer to it, and a check of that by the rule."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path

import torch

from latent_reason.config import check
from latent_reason.data.arc_canvas import ArcCanvas
from latent_reason.data.kinds import BOXES
from latent_reason.data.maze import PATH, Maze
from latent_reason.data.own_puzzle import named_puzzle
from latent_reason.data.puzzle_files import MAX_SOLVER_CELLS, Solver
from latent_reason.data.puzzles import Puzzle
from latent_reason.data.sudoku import Sudoku
from latent_reason.errors import ConfigError, DataError
from latent_reason.files import exists
from latent_reason.puzzles.evaluation import refine
from latent_reason.puzzles.folder import SavedPuzzleModel, load_puzzle_model
from latent_reason.puzzles.model import PuzzleModel

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
"""Trained models that come with the package, each in a folder named as its puzzle."""
REFINEMENT_STEPS = 64
MAX_CHARACTERS = 100_000
MAX_SHOWN = 5
MAZE_CELLS = "# SG"
DRAWN = "|+-"
"""Characters that people draw the boxes of a Sudoku with."""


@dataclass(frozen=True)
class Solution:
    """The model's answer to a puzzle.

    Attributes:
        answer: the grid, a line for each row.
        confidence: 0 to 1, what the halting head says of the answer.
        conflicts: what is wrong with it by the rule, nothing if it is right; None if the puzzle
            states no rule.
        refinement_steps: that were run.
        solved: right by the rule; without a rule, whether the halting head says stop, by the
            model's `halt_confidence` or by q_continue.
        note: what the model has not learnt of this puzzle, empty if nothing.
    """

    answer: str
    confidence: float
    conflicts: list[str] | None
    refinement_steps: int
    solved: bool
    note: str = ""

    @property
    def verdict(self) -> str:
        """The check in a few words, "valid solution" or what is wrong."""
        if self.conflicts is None:
            sure = "sure" if self.solved else "not sure"
            return f"no rule to check it by, the model is {sure}"
        if not self.conflicts:
            return "valid solution"
        num = len(self.conflicts)
        shown = ", ".join(self.conflicts[:MAX_SHOWN]) + (", ..." if num > MAX_SHOWN else "")
        return f"not solved, {num} conflict{'s' if num > 1 else ''}: {shown}"


def solve(
    puzzle_text: str,
    model: str | Path | SavedPuzzleModel | None = None,
    refinement_steps: int = REFINEMENT_STEPS,
) -> Solution:
    """Solve a puzzle; for ARC see `arc_solving.solve_arc`.

    Args:
        puzzle_text: a Sudoku of 16, 36, 81 or 256 digits in one line or drawn, with "." or 0 for a
            blank; a maze drawn with "#" for walls, S, G, and spaces or "." for open cells; or what
            else the puzzle of `model` takes.
        model: a folder of `save_puzzle_model` or what it holds; by default the one in this package
            for puzzles of this kind and size, else for those of this kind.
        refinement_steps: the most of them. Thinking ends earlier when the halting head says stop
            and the answer is right by the rule, if there is one.

    Raises:
        DataError: a wrong length, an unknown symbol, contradictory clues, no or several solutions.
        ConfigError: no such model, or it does not say which puzzle it is for.
        CheckpointError: the folder is not usable.
    """
    check(refinement_steps >= 1, "refinement_steps", refinement_steps, "at least 1")
    if model is None:
        model = load_shipped(puzzle_name_of(puzzle_text))
    saved = model if isinstance(model, SavedPuzzleModel) else load_puzzle_model(model)
    if saved.puzzle is None:
        raise ConfigError(
            f"model: made for puzzle {str(saved.puzzle_name)[:80]!r}, which is not known here; "
            "name it with --puzzle"
        )
    if isinstance(saved.puzzle, ArcCanvas):
        raise ConfigError(
            "model: made for ARC; give it an ARC task, a .json file, "
            "in Python by latent_reason.solve_arc"
        )
    question = parse(saved.puzzle, puzzle_text)
    refuse_impossible(saved.puzzle, question)
    solution = think(saved.model, saved.puzzle, question, refinement_steps)
    notes = [f"the model was trained on {saved.trained_on} only"] if saved.trained_on else []
    if isinstance(saved.puzzle, Maze) and not saved.puzzle.loops:
        if saved.puzzle.has_loop(question):
            notes.append("this maze has a loop; the model has learnt mazes without loops only")
    return replace(solution, note="; ".join(notes))


def think(
    model: PuzzleModel, puzzle: Puzzle, question: list[int], refinement_steps: int
) -> Solution:
    """Refine the answer to a question (S tokens); see `solve`.

    If the limit is reached, the last answer that was right by the rule counts, else the last one.
    """
    inputs = torch.tensor([question], device=model.lm_head.weight.device)
    batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros_like(inputs[:, 0])}
    has_rule = puzzle.valid(inputs, inputs) is not None
    answer, confidence, stop, found, steps = inputs, 0.0, False, False, 0
    for output in refine(model.eval(), batch, refinement_steps):
        steps += 1
        proposed = output.logits.argmax(dim=-1)
        valid = puzzle.valid(inputs, proposed)
        right = valid is not None and bool(valid)
        if right or not found:
            answer, found, stop = proposed, right, bool(output.stop)
            confidence = output.q_halt_logits.sigmoid().item()
        if bool(output.stop) and (right or not has_rule):
            break
    tokens = answer[0].tolist()
    conflicts = puzzle.conflicts(question, tokens) if has_rule else None
    solved = found if has_rule else stop
    return Solution(puzzle.format(tokens), confidence, conflicts, steps, solved)


def load_shipped(name: str) -> SavedPuzzleModel:
    """Load the model in this package for a puzzle, else one for another size of its kind.

    Raises:
        ConfigError: there is none, or no such puzzle.
    """
    named_puzzle(name)
    name = name.removeprefix("perfect-")
    if (CHECKPOINTS / name).is_dir():
        return load_puzzle_model(CHECKPOINTS / name)
    kind, _, size = name.rpartition("-")
    if others := sorted(CHECKPOINTS.glob(f"{kind}-*/")):
        trained_on = load_puzzle_model(others[-1]).puzzle_name or name
        return load_puzzle_model(others[-1], puzzle_name=f"{trained_on.rpartition('-')[0]}-{size}")
    known = sorted(path.name for path in CHECKPOINTS.glob("*/"))
    raise ConfigError(
        f"no model for {name} comes with this package ({', '.join(known) or 'none at all'}); "
        "name a folder with --model"
    )


def puzzle_name_of(text: str) -> str:
    """Return kind and size of a puzzle, such as "sudoku-9x9".

    Raises:
        DataError: if the text is no Sudoku or maze.
    """
    if set(text) & {"#", "S"}:
        rows = _rows(text, MAZE_CELLS)
        height, width = len(rows), len(rows[0])
        if height == 1:
            height = isqrt(width)
            if height * height != width:
                raise DataError(f"puzzle: a maze of {width} cells in one line is not square")
            width = height
        return f"maze-{height}x{width}"
    num = len("".join(_rows(text, "")))
    sides = {side * side: side for side in BOXES}
    if num not in sides:
        raise DataError(
            f"puzzle: {num} cells; a Sudoku has {', '.join(map(str, sides))}, with blanks as . or "
            "0; a maze is drawn with # for walls, S and G"
        )
    return f"sudoku-{sides[num]}x{sides[num]}"


def parse(puzzle: Puzzle, text: str) -> list[int]:
    """Return the S tokens of a drawn puzzle or of one in a single line.

    Raises:
        DataError: on a wrong length, also of one row, or an unknown symbol.
    """
    rows = _rows(text, puzzle.alphabet)
    if len(rows) > 1:
        for number, row in enumerate(rows, start=1):
            if len(row) != puzzle.width:
                raise DataError(
                    f"puzzle: row {number} has {len(row)} cells, expected {puzzle.width}"
                    + ("; write open cells at its end as '.'" if " " in puzzle.alphabet else "")
                )
    try:
        return puzzle.parse("\n".join(rows))
    except DataError as error:
        raise DataError(f"puzzle: {error}") from error


def _rows(text: str, alphabet: str) -> list[str]:
    """Return the lines of a grid without what is only drawn around it.

    Args:
        text: of the puzzle.
        alphabet: characters that are cells; if a space is one, a "." stands for it too.

    Raises:
        DataError: nothing is left, or too much.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(f"puzzle: more than {MAX_CHARACTERS:,} characters")
    if " " in alphabet:
        text = text if "." in alphabet else text.replace(".", " ")
        lines = text.strip("\r\n").splitlines()
    else:
        for sign in set(DRAWN) - set(alphabet):
            text = text.replace(sign, " ")
        lines = ["".join(line.split()) for line in text.split("\n")]
        lines = [line for line in lines if line]
    if not lines:
        raise DataError("puzzle: it is empty")
    return lines


def refuse_impossible(puzzle: Puzzle, question: list[int]) -> None:
    """Raise DataError for a question (S tokens) that cannot have one right answer.

    Contradictory clues of a Sudoku are named; where a solver is fast enough, the solutions are
    counted.
    """
    asked = torch.tensor([question])
    if isinstance(puzzle, Sudoku):
        found = puzzle.conflicts(question, question)
        if clashes := [text for text in found if not text.endswith("is empty")]:
            raise DataError(f"puzzle: contradictory clues: {', '.join(clashes[:MAX_SHOWN])}")
    if isinstance(puzzle, Maze):
        if PATH in question:
            raise DataError("puzzle: the maze holds path cells 'o'; leave them open")
        if int(puzzle.shortest_lengths(asked)) < 0:
            raise DataError("puzzle: no way leads from S to G")
    elif isinstance(puzzle, Solver) and puzzle.num_cells <= MAX_SOLVER_CELLS:
        num = len(puzzle.solve(question, limit=2))
        if num != 1:
            several = "several solutions; add clues" if num else "no solution; check the clues"
            raise DataError(f"puzzle: it has {several}")


def read_puzzle(argument: str) -> str:
    """Return the text of a puzzle given on the command line: itself, a file, or "-" for stdin.

    Raises:
        DataError: there is no such file, or it is no text.
    """
    try:
        if argument == "-":
            return sys.stdin.read(MAX_CHARACTERS + 1).removeprefix("\ufeff")
        if exists(argument, Path.is_dir):
            raise DataError(f"{argument}: is a folder; name a file in it")
        if exists(argument, Path.is_file):
            with open(argument, encoding="utf-8-sig") as file:
                return file.read(MAX_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"{argument}: cannot be read ({error}); give a text file") from error
    if "/" in argument or Path(argument).suffix in (".txt", ".csv", ".json", ".sdk"):
        raise DataError(f"{argument[:200]}: no such file; give a puzzle, a file, or - for stdin")
    return argument
