"""Exact search for Sudoku solutions, and for puzzles with exactly one.

Grids are lists of n * n integers, 0 for an open cell, digits from 1. A state of the search is one
integer with a bit for each of the n**3 candidates: digit d (from 0) in cell c is bit d * n * n + c.
A filled grid has one candidate in each cell, and one place per digit in each row, column and box:
four families of n * n sets, each family looked at by a few logical operations on the whole state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class _Family:
    """Disjoint sets of candidates of which a solution has one each.

    base: the lowest candidate of each set; offsets: from there to each candidate of the set;
    spread: times a base, all candidates of its set.
    """

    base: int
    offsets: list[int]
    spread: int


class SudokuSearch:
    """Backtracking on a set of candidates as small as possible, after all forced moves.

    Args:
        box_height: rows of a box.
        box_width: columns of a box; n = box_height * box_width.
    """

    def __init__(self, box_height: int, box_width: int) -> None:
        n = self.size = box_height * box_width
        lines, boxes = (
            range(n),
            [(r, c) for r in range(0, n, box_height) for c in range(0, n, box_width)],
        )
        in_box = [r * n + c for r in range(box_height) for c in range(box_width)]
        starts_and_offsets = (
            (range(n * n), [d * n * n for d in lines]),
            ([d * n * n + r * n for d in lines for r in lines], list(lines)),
            ([d * n * n + c for d in lines for c in lines], [r * n for r in lines]),
            ([d * n * n + r * n + c for d in lines for r, c in boxes], in_box),
        )
        self._all = (1 << n**3) - 1
        self._keep = [self._all] * n**3
        self._families = []
        for starts, offsets in starts_and_offsets:
            spread = sum(1 << offset for offset in offsets)
            self._families.append(_Family(sum(1 << start for start in starts), offsets, spread))
            for start in starts:
                for offset in offsets:
                    own = 1 << start + offset
                    self._keep[start + offset] &= ~(spread << start) | own

    def solve(self, clues: Sequence[int], limit: int = 2) -> list[list[int]]:
        """Return up to `limit` solutions of a grid of clues."""
        return self._search(self._start(clues), limit, None)

    def random_grid(self, rng: Random) -> list[int]:
        """Draw a filled grid; every grid can come."""
        return self._search(self._all, 1, rng)[0]

    def remove_clues(self, grid: Sequence[int], target: int, rng: Random) -> list[int]:
        """Take clues away in random order while the solution stays the only one.

        Args:
            grid: filled.
            target: number of clues to stop at; 0 goes on until no clue can be spared.
            rng: decides the order.
        """
        clues = list(grid)
        left = len(clues)
        for cell in rng.sample(range(left), left):
            if left <= target:
                break
            digit, clues[cell] = clues[cell], 0
            here = 1 << (digit - 1) * len(clues) + cell
            if self._search(self._start(clues) & ~here, 1, None):  # any other solution
                clues[cell] = digit
            else:
                left -= 1
        return clues

    def _start(self, clues: Sequence[int]) -> int:
        """Return the candidates beside the clues."""
        state = self._all
        for cell, digit in enumerate(clues):
            if digit:
                state &= self._keep[(digit - 1) * len(clues) + cell]
        return state

    def _search(self, state: int, limit: int, rng: Random | None) -> list[list[int]]:
        """Return up to `limit` solutions; with `rng` the order of branches is random."""
        solutions: list[list[int]] = []
        stack = [(state, 0)]
        while stack and len(solutions) < limit:
            result = self._propagate(*stack.pop())
            if result is None:
                continue
            state, done, choice = result
            if not choice:
                solutions.append(self._read(state))
                continue
            branches = list(_bits(choice))
            if rng is not None:
                rng.shuffle(branches)
            stack += [(state & self._keep[bit.bit_length() - 1], done) for bit in branches]
        return solutions

    def _propagate(self, state: int, done: int) -> tuple[int, int, int] | None:
        """Make all forced moves; None if they contradict each other.

        Args:
            state: candidates.
            done: those whose rivals have been taken out already.

        Returns:
            the new `state` and `done`, and the candidates to branch on, 0 if all cells are filled.
        """
        while True:
            forced = choice = 0
            for family in self._families:
                base, one, two, three = family.base, 0, 0, 0
                for offset in family.offsets:
                    part = state >> offset & base
                    three |= two & part
                    two |= one & part
                    one |= part
                if one != base:
                    return None
                forced = (base & ~two) * family.spread & state & ~done
                if forced:
                    break
                pairs = two & ~three
                if two and not choice or pairs and choice.bit_count() > 2:
                    start = pairs or two
                    choice = (start & -start) * family.spread & state
            if not forced:
                return state, done, choice
            done |= forced
            for bit in _bits(forced):
                state &= self._keep[bit.bit_length() - 1]

    def _read(self, state: int) -> list[int]:
        cells = self.size * self.size
        grid = [0] * cells
        for bit in _bits(state):
            digit, cell = divmod(bit.bit_length() - 1, cells)
            grid[cell] = digit + 1
        return grid


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit
