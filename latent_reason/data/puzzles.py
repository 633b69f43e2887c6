"""Grid puzzles: what one must state, and how a dataset of them trains with fresh symmetries.

A `Puzzle` states its grid shape, alphabet, symmetries, groups and rule. Symbol number i of the
alphabet is token i + 1; token 0 is padding: in an answer it marks a cell that is not asked. Grids
are flat, row by row. A new puzzle is a subclass of some forty lines; see `grid_tasks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_reason.data.order import Draws, rows_at
from latent_reason.errors import ConfigError, DataError
from latent_reason.losses import IGNORE_INDEX

PAD = 0


@dataclass(frozen=True)
class Symmetry:
    """One symmetry for each of B grids: cells change places, symbols change names.

    cells: (B, S) int64; cell s of the new grid is cell `cells[s]` of the old one.
    symbols: (B, V) int64; token t becomes `symbols[t]`; padding stays padding.
    """

    cells: Tensor
    symbols: Tensor

    def apply(self, grids: Tensor) -> Tensor:
        """Transform grids (B, S) int64 of tokens."""
        return self.symbols.gather(1, grids.gather(1, self.cells))

    def inverse(self) -> Symmetry:
        """Return the symmetry that undoes this one."""
        return Symmetry(self.cells.argsort(dim=1), self.symbols.argsort(dim=1))


class Puzzle:
    """What the project must know of a kind of puzzle; subclasses fill it in.

    Attributes:
        name: one word.
        height, width: of the grid; S = height * width cells.
        alphabet: one character per symbol, the blank first if there is one.
        blank: the symbol of an open cell in questions, which no answer holds; "" if every cell
            of an answer may hold every symbol.
    """

    name: str
    height: int
    width: int
    alphabet: str
    blank: str = ""

    @property
    def num_cells(self) -> int:
        """S, cells of the grid."""
        return self.height * self.width

    @property
    def vocab_size(self) -> int:
        """V, tokens: padding and the symbols."""
        return 1 + len(self.alphabet)

    def groups(self) -> Tensor:
        """Return (G, S) bool: sets of cells that belong together, such as rows of a Sudoku.

        They are what mixer "groups" exchanges information over; all cells as one group if the
        puzzle states none.
        """
        return torch.ones(1, self.num_cells, dtype=torch.bool)

    def symmetry(self, draws: Draws) -> Symmetry | None:
        """Draw a symmetry for each example; None if the puzzle has none.

        Question and answer, transformed alike, must be a puzzle and its answer again.
        """
        return None

    def conflicts(self, question: Sequence[int], answer: Sequence[int]) -> list[str]:
        """Return what is wrong with an answer (S tokens) by the rule, nothing if it is right."""
        raise NotImplementedError

    def valid(self, questions: Tensor, answers: Tensor) -> Tensor | None:
        """Tell which answers (B, S) are right by the rule, (B,) bool; None without a rule."""
        return None

    def generate(self, num: int, seed: int, split: str = "train") -> tuple[Tensor, Tensor]:
        """Make `num` puzzles of a split: questions and answers (num, S), the same every time.

        Raises:
            ConfigError: if this kind of puzzle has no generator.
        """
        raise ConfigError(f"puzzle {self.name}: has no generator; give train_data and test_data")

    def parse(self, text: str) -> list[int]:
        """Return the S tokens of a grid in the alphabet.

        White space between cells is ignored; if the alphabet has any, only line ends are.

        Raises:
            DataError: on another length or an unknown symbol.
        """
        spaces = any(cell.isspace() for cell in self.alphabet)
        cells = "".join(text.splitlines() if spaces else text.split())
        if len(cells) != self.num_cells:
            raise DataError(
                f"{len(cells)} cells, expected {self.num_cells} ({self.height} x {self.width})"
            )
        tokens = [self.alphabet.find(cell) + 1 for cell in cells]
        if PAD in tokens:
            at = tokens.index(PAD)
            raise DataError(f"cell {at + 1} is {cells[at]!r}, expected one of {self.alphabet!r}")
        return tokens

    def format(self, tokens: Sequence[int]) -> str:
        """Return S tokens as lines of the grid; padding becomes "?"."""
        cells = [self.alphabet[t - 1] if t != PAD else "?" for t in tokens]
        rows = range(0, self.num_cells, self.width)
        return "\n".join("".join(cells[start : start + self.width]) for start in rows)


class PuzzleDataset:
    """Questions and answers of one puzzle as tensors; training examples get fresh symmetries.

    Args:
        puzzle: the kind.
        questions: (N, S) tokens, any integer dtype.
        answers: (N, S) tokens, padding where nothing is asked.
        augment: whether `at` draws symmetries.
        puzzle_identifiers: (N,) int64 rows of the puzzle table; 0 for all if not given.

    Attributes:
        sources: name, number of the first row, and number of rows of each file they come from;
            none for generated puzzles.
        numbers: (N,) int64, where each puzzle stands in all sources together, from 0.
        hints: the largest part of its answer's cells that a training example is given; each
            draws its own part, uniform from none to this. 0 at first.
    """

    def __init__(
        self,
        puzzle: Puzzle,
        questions: Tensor,
        answers: Tensor,
        augment: bool = True,
        puzzle_identifiers: Tensor | None = None,
    ) -> None:
        self.puzzle, self.augment, self.hints = puzzle, augment, 0.0
        self.questions, self.answers = questions.to(torch.uint8), answers.to(torch.uint8)
        if puzzle_identifiers is None:
            puzzle_identifiers = questions.new_zeros(len(questions), dtype=torch.long)
        self.puzzle_identifiers = puzzle_identifiers
        self.sources: tuple[tuple[str, int, int], ...] = ()
        self.numbers = torch.arange(len(questions))

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def num_tokens(self) -> int:
        """S, cells of the grid."""
        return self.puzzle.num_cells

    def to(self, device: torch.device | str) -> PuzzleDataset:
        """Move to a device and return self."""
        self.questions, self.answers = self.questions.to(device), self.answers.to(device)
        self.puzzle_identifiers = self.puzzle_identifiers.to(device)
        return self

    def subset(self, rows: Tensor) -> PuzzleDataset:
        """Return a dataset of these rows."""
        grids = self.questions[rows], self.answers[rows]
        part = PuzzleDataset(self.puzzle, *grids, self.augment, self.puzzle_identifiers[rows])
        part.sources, part.numbers = self.sources, self.numbers[rows.cpu()]
        return part

    def place(self, row: int) -> str:
        """Return where a row (from 0) comes from, "FILE:ROW" if from a file."""
        number = int(self.numbers[row])
        for name, first, num in self.sources:
            if number < num:
                return f"{name}:{first + number}"
            number -= num
        return f"puzzle {number + 1}"

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Gather (B,) rows as they are: inputs and labels (B, S), puzzle_identifiers (B,)."""
        return self._gather(rows.to(self.questions.device), None)

    def at(self, positions: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the training examples at positions (B,) of the endless data order.

        A pure function of (seed, position): order and symmetries need not be saved.
        """
        rows = rows_at(positions.cpu(), seed, len(self)).to(self.questions.device)
        draws = Draws(positions.to(self.questions.device), seed)
        symmetry = self.puzzle.symmetry(draws) if self.augment else None
        batch = self._gather(rows, symmetry)
        if self.hints:
            shown = draws.uniform(self.num_tokens) < self.hints * draws.uniform(1)
            shown &= batch["labels"] != IGNORE_INDEX
            batch["inputs"] = torch.where(shown, batch["labels"], batch["inputs"])
        return batch

    def _gather(self, rows: Tensor, symmetry: Symmetry | None) -> dict[str, Tensor]:
        """Return rows (B,), transformed."""
        questions, answers = self.questions[rows].long(), self.answers[rows].long()
        if symmetry is not None:
            questions, answers = symmetry.apply(questions), symmetry.apply(answers)
        return {
            "inputs": questions,
            "labels": answers.masked_fill(answers == PAD, IGNORE_INDEX),
            "puzzle_identifiers": self.puzzle_identifiers[rows],
        }
