"""Mazes: find a shortest path from S to G; symmetries, rule, and a generator.

A grid holds walls "#", open cells " ", one S and one G. Its answer has "o" on the open cells of a
shortest path between S and G. A path goes up, down, left and right; its *length* is its number of
moves, one more than its number of "o".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from latent_reason.config import check
from latent_reason.data.maze_making import carve, longest_length, pick
from latent_reason.data.order import Draws
from latent_reason.data.puzzle_splits import MAX_MISSES, hash_grids, make_split
from latent_reason.data.puzzles import PAD, Puzzle, Symmetry
from latent_reason.errors import DataError

WALL, SPACE, START, GOAL, PATH = 1, 2, 3, 4, 5
MAX_SIDE = 180
MAX_CELLS_MISSED = 16_000_000
"""Cells of mazes drawn in a row without a new one after which a split counts as used up: those of
large mazes take long."""


class Maze(Puzzle):
    """A maze of height x width cells.

    Args:
        height: cells.
        width: cells.
        loops: probability that the generator opens a wall between two cells; 0 gives perfect
            mazes, with one route between any two cells.

    Raises:
        ConfigError: if a side is not between 3 and 180, or `loops` is no probability.
    """

    def __init__(self, height: int, width: int, loops: float = 0.1) -> None:
        check(0 <= loops <= 1, "loops", loops, "0 to 1")
        for side, cells in (("height", height), ("width", width)):
            check(3 <= cells <= MAX_SIDE, side, cells, f"3 to {MAX_SIDE}")
        self.name, self.height, self.width, self.loops = "maze", height, width, loops
        self.alphabet = "# SGo"

    def parse(self, text: str) -> list[int]:
        """Return the S tokens of a maze drawn in one line or in one line per row.

        Raises:
            DataError: on another length, an unknown symbol, or not one S and one G.
        """
        tokens = super().parse(text)
        for token in (START, GOAL):
            if (count := tokens.count(token)) != 1:
                raise DataError(f"{count} cells are {self.alphabet[token - 1]}, expected one")
        return tokens

    def groups(self) -> Tensor:
        """Return (G, S) bool: the pairs of cells that lie side by side or one above the other."""
        cell = torch.arange(self.num_cells).view(self.height, self.width)
        pairs = ((cell[:, :-1], cell[:, 1:]), (cell[:-1], cell[1:]))
        ends = [torch.stack((a.flatten(), b.flatten()), dim=1) for a, b in pairs]
        edges = torch.cat(ends)
        return torch.zeros(len(edges), self.num_cells, dtype=torch.bool).scatter_(1, edges, True)

    def symmetry(self, draws: Draws) -> Symmetry:
        """Turn and mirror: 8 ways if the maze is square, else 4."""
        way = draws.below(len(self._images))
        symbols = torch.arange(self.vocab_size, device=way.device)
        return Symmetry(self._images.to(way.device)[way], symbols.expand(len(way), -1))

    def fingerprints(self, questions: Tensor) -> Tensor:
        """Return (B,) int64 numbers, equal for questions (B, S) equal up to symmetry.

        Mazes with S and G exchanged, which have the same path, count as equal too.
        """
        alike = torch.where(questions == GOAL, START, questions)
        images = self._images.to(questions.device)
        return torch.stack([hash_grids(alike[:, cells]) for cells in images]).amin(dim=0)

    def shortest_lengths(self, questions: Tensor) -> Tensor:
        """Return (B,) int64 moves of a shortest path from S to G of questions (B, S).

        -1 where there is no path, or not exactly one S and one G.
        """
        lengths, _ = self._distances(_passable(questions), questions == START)
        ends = ((questions == START).sum(1) == 1) & ((questions == GOAL).sum(1) == 1)
        at_goal = lengths.masked_fill(questions != GOAL, -1).amax(dim=1).long()
        return at_goal.masked_fill(~ends, -1)

    def has_loop(self, question: Sequence[int]) -> bool:
        """Tell whether a maze (S tokens) has several routes somewhere in reach of S."""
        asked = torch.tensor([question])
        lengths, _ = self._distances(_passable(asked), asked == START)
        is_open = (lengths >= 0).view(self.height, self.width)
        beside, below = is_open[:, :-1] & is_open[:, 1:], is_open[:-1] & is_open[1:]
        return int(beside.sum() + below.sum()) > int(is_open.sum()) - 1

    def valid(self, questions: Tensor, answers: Tensor) -> Tensor:
        """Tell which answers are right: the question with a shortest path, whichever it is.

        Args:
            questions: (B, S) tokens, any integer dtype.
            answers: (B, S) tokens.

        Returns:
            (B,) bool.
        """
        path = (answers == PATH) & (questions == SPACE)
        kept = (path | (answers == questions)).all(dim=1) & (questions != PATH).all(dim=1)
        lengths = self.shortest_lengths(questions)
        along = self.shortest_lengths(_only_path(questions, path))
        return kept & (lengths > 0) & (along == lengths) & (path.sum(1) == lengths - 1)

    def conflicts(self, question: Sequence[int], answer: Sequence[int]) -> list[str]:
        """Return what is wrong with an answer (S tokens) by the rule, nothing if it is right."""
        asked, given = torch.tensor([question]), torch.tensor([answer])
        shortest = int(self.shortest_lengths(asked))
        if shortest < 0 or PATH in question:
            return ["the question is not an open maze with one S, one G and a path between them"]
        path = (given == PATH) & (asked == SPACE)
        changed = (~path & (given != asked))[0].nonzero()[:, 0].tolist()
        found = [self._change(cell, question[cell], answer[cell]) for cell in changed]
        length = int(self.shortest_lengths(_only_path(asked, path)))
        if length < 0:
            return [*found, "the path does not join S and G"]
        if length > shortest:
            found.append(f"the path takes {length} moves, {length - shortest} more than needed")
        if stray := int(path.sum()) - (length - 1):
            found.append(f"path cells off the way from S to G: {stray}")
        return found

    def generate(
        self, num: int, seed: int, split: str = "train", min_length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make different mazes; the same arguments give the same ones.

        A perfect maze is carved by randomised depth-first search, then some walls between its
        cells are opened. S or G lies as far as possible from a random cell, the other end anywhere
        far enough; mazes with several shortest paths are left out, so that an answer is right only
        if it is the stored one. A larger `num` appends to the mazes of a smaller one. The splits
        share no question, not even up to symmetry, whatever the seeds and the other arguments.

        Args:
            num: mazes, 1 or more.
            seed: any integer.
            split: one of `puzzle_splits.SPLITS`.
            min_length: the least moves from S to G, `longest_length` at most; height + width if
                not given.

        Returns:
            questions and answers, (num, S) int64 tokens each.

        Raises:
            ConfigError: for a split, a number or a length that is not possible.
            DataError: if no more mazes of the split are found.
        """
        least = self.height + self.width if min_length is None else min_length
        most = longest_length(self.height, self.width)
        size = f"{self.height}x{self.width}"
        check(1 <= least <= most, "min_length", least, f"1 to {most}, no {size} maze has more")
        tries = min(MAX_MISSES, MAX_CELLS_MISSED // self.num_cells)

        def draw(draws: Draws) -> tuple[Tensor, Tensor]:
            return self._draw(draws, least)

        return make_split(self, draw, num, seed, split, f" of min_length {least}", tries)

    def _draw(self, draws: Draws, min_length: int) -> tuple[Tensor, Tensor]:
        """Return the usable (n, S) questions and answers of a chunk of random mazes."""
        is_open = carve(draws, self.height, self.width, self.loops)
        lengths, _ = self._distances(is_open, pick(is_open, draws))
        start = pick(lengths == lengths.amax(dim=1, keepdim=True), draws)
        lengths, routes = self._distances(is_open, start)
        goal = pick((lengths >= min_length) & (routes == 1), draws)
        exchanged = draws.below(2).bool()[:, None]
        questions = torch.where(is_open, SPACE, WALL)
        questions = torch.where(torch.where(exchanged, goal, start), START, questions)
        questions = torch.where(torch.where(exchanged, start, goal), GOAL, questions)
        path = self._walk_back(lengths, goal) & (questions == SPACE)
        answers = questions.masked_fill(path, PATH)
        usable = goal.any(dim=1)
        return questions[usable], answers[usable]

    def _distances(self, passable: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """Search breadth first in all grids at once.

        Args:
            passable: (B, S) bool, where a path may go.
            start: (B, S) bool, where it begins.

        Returns:
            (B, S) int16 moves from the start, -1 where no path leads, and (B, S) uint8 number of
            shortest paths, 2 standing for more.
        """
        # A margin of walls right and below, so that one flat shift of all grids is one move.
        grid = (-1, self.height, self.width)
        margin = (0, 1, 0, 1)
        front = F.pad(start.view(grid), margin).flatten().byte()
        unseen = F.pad((passable & ~start).view(grid), margin).flatten().byte()
        routes = torch.zeros_like(front)
        lengths = torch.full_like(front, -1, dtype=torch.int16)
        moves = 0
        while front.any():
            routes += front
            lengths.masked_fill_(front.bool(), moves)
            reached = torch.zeros_like(front)
            for shift in (1, self.width + 1):
                reached[shift:] += front[:-shift]
                reached[:-shift] += front[shift:]
            front = reached.clamp_(max=2).mul_(unseen)
            unseen.masked_fill_(front.bool(), 0)
            moves += 1
        padded = (-1, self.height + 1, self.width + 1)
        inside = [x.view(padded)[:, :-1, :-1].flatten(1) for x in (lengths, routes)]
        return inside[0], inside[1]

    def _walk_back(self, lengths: Tensor, goal: Tensor) -> Tensor:
        """Return (B, S) bool, the cells of a shortest path, both ends included.

        Args:
            lengths: (B, S) moves from the start.
            goal: (B, S) bool, the other end; nowhere for a grid to skip.
        """
        lengths = F.pad(lengths, (0, 1), value=-1)  # of the neighbours outside the grid
        here = F.pad(goal, (0, 1)).int().argmax(dim=1, keepdim=True)
        path = torch.zeros_like(lengths, dtype=torch.bool)
        for _ in range(int(lengths.gather(1, here).max()) + 1):
            path.scatter_(1, here, True)
            near = self._neighbours[here[:, 0]]
            nearer = lengths.gather(1, near) == lengths.gather(1, here) - 1
            onwards = near.gather(1, nearer.int().argmax(dim=1, keepdim=True))
            here = torch.where(lengths.gather(1, here) > 0, onwards, here)
        return path[:, :-1]

    def _change(self, cell: int, old: int, new: int) -> str:
        row, column = cell // self.width + 1, cell % self.width + 1
        names = ["?", "a wall", "open", "S", "G", "path"]
        return f"cell r{row}c{column} changes from {names[old]} to {names[new]}"

    @cached_property
    def _neighbours(self) -> Tensor:
        """(S, 4) int64 cells up, left, right and down of each; S where there is none."""
        numbers = torch.arange(self.num_cells).view(self.height, self.width)
        framed = F.pad(numbers, (1, 1, 1, 1), value=self.num_cells)
        sides = framed[:-2, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:], framed[2:, 1:-1]
        return torch.stack(sides, dim=-1).flatten(0, 1)

    @cached_property
    def _images(self) -> Tensor:
        """(8 or 4, S) int64: for every way to turn and mirror, the old cell of each new one."""
        numbers = torch.arange(self.num_cells).view(self.height, self.width)
        ways = [numbers, numbers.flip(0), numbers.flip(1), numbers.flip(0, 1)]
        if self.height == self.width:
            ways += [way.t() for way in ways]
        return torch.stack([way.flatten() for way in ways])


def _passable(questions: Tensor) -> Tensor:
    """Tell of cells whether a path may go there: neither walls nor missing cells."""
    return (questions != WALL) & (questions != PAD)


def _only_path(questions: Tensor, path: Tensor) -> Tensor:
    """Return questions with walls on all open cells but the path."""
    return torch.where((questions == SPACE) & ~path, WALL, questions)
