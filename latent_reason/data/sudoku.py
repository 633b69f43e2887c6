"""Sudoku of n x n cells: symmetries, rule, solver, and puzzles with exactly one solution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from latent_reason.config import check, check_request
from latent_reason.data.order import Draws, scramble
from latent_reason.data.puzzle_splits import SPLITS, home_splits
from latent_reason.data.puzzles import Puzzle, Symmetry
from latent_reason.data.sudoku_search import SudokuSearch
from latent_reason.errors import ConfigError, DataError

MAX_SIZE = 16
MAX_MISSES = 10_000
"""Draws in a row without a new puzzle after which a split counts as used up."""
_CHUNK = 16
_ROUNDS = 6


class Sudoku(Puzzle):
    """n x n cells with n = box_height * box_width digits, each once per row, column and box.

    Questions are written with 0 or "." for a blank; digits after 9 are the letters A to G.

    Args:
        box_height: rows of a box: 2 for 4x4 and 6x6, 3 for 9x9, 4 for 16x16.
        box_width: columns of a box: 2 for 4x4, 3 for 6x6 and 9x9, 4 for 16x16.

    Raises:
        ConfigError: if n is not between 2 and 16.
    """

    def __init__(self, box_height: int = 3, box_width: int = 3) -> None:
        size = box_height * box_width
        if min(box_height, box_width) < 1 or not 2 <= size <= MAX_SIZE:
            raise ConfigError(
                f"boxes: got {box_height} x {box_width}, expected two positive numbers whose "
                f"product is 2 to {MAX_SIZE}, such as 2 x 2, 2 x 3, 3 x 3 or 4 x 4"
            )
        self.box_height, self.box_width = box_height, box_width
        self.name, self.height, self.width = f"sudoku{size}", size, size
        self.alphabet, self.blank = "0123456789ABCDEFG"[: size + 1], "0"

    def parse(self, text: str) -> list[int]:
        """Return the S tokens of a grid; "." is a blank too, and small letters are digits too."""
        return super().parse(text.upper().replace(".", "0"))

    def groups(self) -> Tensor:
        """Return (3n, S) bool: rows, columns, boxes."""
        n = self.width
        row, column = torch.arange(n * n) // n, torch.arange(n * n) % n
        box = row // self.box_height * self.box_height + column // self.box_width
        unit = torch.arange(n)[:, None]
        return torch.cat((row == unit, column == unit, box == unit))

    def symmetry(self, draws: Draws) -> Symmetry:
        """Permute digits, bands, rows in bands, stacks and columns in stacks; transpose.

        Transposed only if boxes are square, each with probability 1/2.
        """
        n = self.width
        rows = _permute_lines(draws, n, self.box_height)
        columns = _permute_lines(draws, n, self.box_width)
        cells = rows[:, :, None] * n + columns[:, None, :]
        if self.box_height == self.box_width:
            turned = draws.below(2).bool()[:, None, None]
            cells = torch.where(turned, cells.transpose(1, 2), cells)
        digits = draws.permutations(n) + 2
        fixed = torch.arange(2, device=digits.device).expand(len(digits), 2)
        return Symmetry(cells.flatten(1), torch.cat((fixed, digits), dim=1))

    def conflicts(self, question: Sequence[int], answer: Sequence[int]) -> list[str]:
        """Return what is wrong with an answer (S tokens) by the rule, nothing if it is right."""
        n, found = self.width, []
        for cell, (clue, token) in enumerate(zip(question, answer, strict=True)):
            place = f"cell r{cell // n + 1}c{cell % n + 1}"
            if token < 2:
                found.append(f"{place} is empty")
            elif clue > 1 and token != clue:
                digits = self.alphabet
                found.append(f"{place} changes the clue {digits[clue - 1]} to {digits[token - 1]}")
        for index, group in enumerate(self._cells_of_groups):
            held = [answer[cell] for cell in group]
            for token in range(2, n + 2):
                if (count := held.count(token)) > 1:
                    unit = ("row", "column", "box")[index // n]
                    times = "twice" if count == 2 else f"{count} times"
                    digit = self.alphabet[token - 1]
                    found.append(f"{unit} {index % n + 1} holds {digit} {times}")
        return found

    def valid(self, questions: Tensor, answers: Tensor) -> Tensor:
        """Tell which answers solve their questions.

        Args:
            questions: (B, S) tokens, any integer dtype.
            answers: (B, S) tokens.

        Returns:
            (B,) bool.
        """
        n, height, width = self.width, self.box_height, self.box_width
        digits = answers.int() - 2
        bits = torch.where(digits < 0, 0, 1 << digits.clamp(0, n - 1)).view(-1, n, n)
        boxes = bits.view(-1, n // height, height, n // width, width)
        sums = torch.cat((bits.sum(2), bits.sum(1), boxes.sum((2, 4)).flatten(1)), dim=1)
        # n powers of two below 2**n sum to 2**n - 1 only if each comes once.
        keeps_clues = ((questions < 2) | (questions == answers)).all(dim=1)
        return (sums == 2**n - 1).all(dim=1) & keeps_clues & (digits < n).all(dim=1)

    def solve(self, question: Sequence[int], limit: int = 2) -> list[list[int]]:
        """Return up to `limit` answers (S tokens each) of a question (S tokens)."""
        clues = [max(token - 1, 0) for token in question]
        return [[digit + 1 for digit in grid] for grid in self._search.solve(clues, limit)]

    def fingerprints(self, questions: Tensor) -> Tensor:
        """Return (B,) int64 numbers that are equal for questions (B, S) equal up to symmetry.

        Different questions rarely share a number unless nearly all cells are given: every cell
        starts alike and is told apart by the cells that share its row, column, box and digit.
        """
        n, device = self.width, questions.device
        cells_of = torch.tensor(self._cells_of_groups, device=device)
        groups_of = self.groups().t().nonzero()[:, 1].view(n * n, 3).to(device)
        salts = torch.tensor((1, 1 if self.box_height == self.box_width else 2, 3), device=device)
        line = torch.arange(n, device=device)
        bands_and_stacks = torch.cat((line // self.box_height, n + line // self.box_width))
        digits = questions.long()
        colours = (digits > 1).long()
        for _ in range(_ROUNDS):
            mixed = scramble(colours)
            units = scramble(mixed[:, cells_of].sum(2) + salts.repeat_interleave(n))
            blocks = torch.zeros_like(units).index_add_(1, bands_and_stacks, units[:, : 2 * n])
            units[:, : 2 * n] += scramble(blocks)[:, bands_and_stacks]
            symbols = torch.zeros_like(units).scatter_add_(1, digits, mixed)
            same_digit = scramble(symbols).gather(1, digits) * (digits > 1)
            colours = scramble(mixed + scramble(units)[:, groups_of].sum(2)) + same_digit
        return scramble(scramble(colours).sum(1))

    def generate(
        self, num: int, seed: int, split: str = "train", clues: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make different puzzles with one solution each; the same arguments give the same ones.

        From a random grid, clues are taken away in random order until their number reaches a
        target or none can be spared. A larger `num` appends to the puzzles of a smaller one.

        The splits share no question, not even up to symmetry (`fingerprints`), whatever the seeds.
        They may share solutions: 4x4 has only 2 different grids up to symmetry and 6x6 only 49,
        while two of the 9x9 grids drawn here are practically never alike.

        Args:
            num: puzzles, 1 or more.
            seed: any integer.
            split: one of `puzzle_splits.SPLITS`.
            clues: range of the target, drawn for each puzzle; from 0 (16x16: 112, since fewer take
                minutes each) to half of the cells if not given. (0, 0) takes away all that can be
                spared.

        Returns:
            questions and answers, (num, S) int64 tokens each.

        Raises:
            ConfigError: for a split, a number or a range that is not possible.
            DataError: if no more puzzles of the split are found.
        """
        low, high = clues or (112 if self.num_cells > 81 else 0, self.num_cells // 2)
        check_request(split, num, SPLITS)
        fits = 0 <= low <= high <= self.num_cells
        check(fits, "clues", clues, f"0 <= low <= high <= {self.num_cells}")
        rng = Random(f"{self.name} {self.box_height} {seed} {low} {high} {split}")
        puzzles: dict[tuple[int, ...], list[int]] = {}
        misses = 0
        while len(puzzles) < num:
            grids = [self._search.random_grid(rng) for _ in range(_CHUNK)]
            drawn = [self._search.remove_clues(g, rng.randint(low, high), rng) for g in grids]
            splits = home_splits(self.fingerprints(torch.tensor(drawn) + 1))
            before = len(puzzles)
            for question, grid, home in zip(drawn, grids, splits, strict=True):
                if home == split:
                    puzzles.setdefault(tuple(question), grid)
            misses = misses + _CHUNK if len(puzzles) == before else 0
            if misses >= MAX_MISSES:
                raise DataError(
                    f"{self.name}: found only {len(puzzles)} different puzzles for split "
                    f"{split!r}, not {num}; ask for fewer or widen clues"
                )
        questions, answers = list(puzzles)[:num], list(puzzles.values())[:num]
        return torch.tensor(questions) + 1, torch.tensor(answers) + 1

    @cached_property
    def _cells_of_groups(self) -> list[list[int]]:
        return [group.nonzero()[:, 0].tolist() for group in self.groups()]

    @cached_property
    def _search(self) -> SudokuSearch:
        return SudokuSearch(self.box_height, self.box_width)


def _permute_lines(draws: Draws, num: int, per_block: int) -> Tensor:
    """Return (B, num) int64: an order of lines that keeps those of a band or stack together."""
    blocks = draws.permutations(num // per_block)
    inner = draws.bits(num).view(-1, num // per_block, per_block).argsort(dim=2)
    return (blocks[:, :, None] * per_block + inner).flatten(1)
