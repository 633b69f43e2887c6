"""Sorting and state tracking as grids of one row: short examples of how to add a puzzle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from latent_reason.config import check
from latent_reason.data.order import Draws
from latent_reason.data.puzzle_splits import hash_grids, make_split
from latent_reason.data.puzzles import Puzzle, Symmetry


class Sorting(Puzzle):
    """Digits in any order; the answer has them in ascending order.

    Args:
        num_digits: S, from 2 to 1024.

    Raises:
        ConfigError: for another number.
    """

    def __init__(self, num_digits: int = 16) -> None:
        check(2 <= num_digits <= 1024, "num_digits", num_digits, "2 to 1024")
        self.name, self.height, self.width, self.alphabet = "sorting", 1, num_digits, "0123456789"

    def symmetry(self, draws: Draws) -> Symmetry:
        """Half of the time turn the row round and make every digit d the digit 9 - d."""
        turned = draws.below(2)[:, None]
        cells = torch.arange(self.num_cells, device=turned.device)
        symbols = torch.arange(self.vocab_size, device=turned.device)
        opposite = torch.cat((symbols[:1], symbols[1:].flip(0)))
        return Symmetry(
            torch.where(turned == 1, cells.flip(0), cells),
            torch.where(turned == 1, opposite, symbols),
        )

    def fingerprints(self, questions: Tensor) -> Tensor:
        """Return (B,) int64 numbers, equal for questions (B, S) equal up to symmetry."""
        turned = len(self.alphabet) + 1 - questions.long().flip(1)
        return torch.minimum(hash_grids(questions), hash_grids(turned))

    def valid(self, questions: Tensor, answers: Tensor) -> Tensor:
        """Return (B,) bool, which answers (B, S) are right."""
        return (questions.sort(dim=1).values == answers).all(dim=1)

    def conflicts(self, question: Sequence[int], answer: Sequence[int]) -> list[str]:
        """Return what is wrong with an answer (S tokens) by the rule, nothing if it is right."""
        found = []
        for digit, token in zip(self.alphabet, range(1, self.vocab_size), strict=True):
            have, want = list(answer).count(token), list(question).count(token)
            if have != want:
                found.append(f"digit {digit} comes {have} times, not {want}")
        for cell in range(1, self.num_cells):
            if answer[cell] < answer[cell - 1]:
                found.append(f"cell {cell + 1} is less than the one before")
        return found

    def generate(self, num: int, seed: int, split: str = "train") -> tuple[Tensor, Tensor]:
        """Return questions and answers (num, S) int64 of a split; see `make_split`."""

        def draw(draws: Draws) -> tuple[Tensor, Tensor]:
            questions = draws.numbers(self.num_cells) % len(self.alphabet) + 1
            return questions, questions.sort(dim=1).values

        return make_split(self, draw, num, seed, split)


class StateTracking(Puzzle):
    """Moves that rearrange some objects; the answer is the arrangement after each move.

    Moves and arrangements are both permutations, one symbol for each, the identity first. The
    answer at cell s is the product of the moves up to s: the word problem of the symmetric group.
    With five objects no circuit of fixed depth is believed to solve it for all lengths.

    Args:
        num_moves: S, from 2 to 1024.
        num_objects: from 2 to 5; 5 give 120 symbols.

    Raises:
        ConfigError: for other numbers.
    """

    def __init__(self, num_moves: int = 24, num_objects: int = 5) -> None:
        check(2 <= num_moves <= 1024, "num_moves", num_moves, "2 to 1024")
        check(2 <= num_objects <= 5, "num_objects", num_objects, "2 to 5")
        orders = list(permutations(range(num_objects)))
        number = {order: index for index, order in enumerate(orders)}
        after = [[number[tuple(a[i] for i in b)] for b in orders] for a in orders]
        inverse = [row.index(0) for row in after]
        relabelled = [
            [after[after[p][g]][inverse[p]] for g in range(len(orders))] for p in range(len(orders))
        ]
        self.name, self.height, self.width = "state_tracking", 1, num_moves
        letters = [c for c in map(chr, range(0x30, 0x180)) if c.isdecimal() or c.isalpha()]
        self.alphabet = "".join(letters[: len(orders)])
        self._after = torch.tensor(after)
        self._relabelled = torch.tensor(relabelled)

    def symmetry(self, draws: Draws) -> Symmetry:
        """Give the objects other numbers, in moves and arrangements alike."""
        table = self._relabelled + 1
        symbols = torch.cat((torch.zeros(len(table), 1, dtype=torch.long), table), dim=1)
        way = draws.below(len(table))
        cells = torch.arange(self.num_cells, device=way.device)
        return Symmetry(cells.expand(len(way), -1), symbols.to(way.device)[way])

    def fingerprints(self, questions: Tensor) -> Tensor:
        """Return (B,) int64 numbers, equal for questions (B, S) equal up to symmetry."""
        tables = self._relabelled.to(questions.device)
        return torch.stack([hash_grids(t[questions.long() - 1]) for t in tables]).amin(dim=0)

    def answers(self, questions: Tensor) -> Tensor:
        """Return the answers (B, S) int64 of questions (B, S)."""
        after, moves = self._after.to(questions.device), questions.long() - 1
        states = [moves[:, 0]]
        for move in moves[:, 1:].t():
            states.append(after[states[-1], move])
        return torch.stack(states, dim=1) + 1

    def valid(self, questions: Tensor, answers: Tensor) -> Tensor:
        """Return (B,) bool, which answers (B, S) are right."""
        return (self.answers(questions) == answers).all(dim=1)

    def conflicts(self, question: Sequence[int], answer: Sequence[int]) -> list[str]:
        """Return what is wrong with an answer (S tokens) by the rule, nothing if it is right."""
        want = self.answers(torch.tensor([question]))[0].tolist()
        cells = enumerate(zip(want, answer, strict=True), start=1)
        return [f"the arrangement after move {at} is wrong" for at, (w, a) in cells if w != a]

    def generate(self, num: int, seed: int, split: str = "train") -> tuple[Tensor, Tensor]:
        """Return questions and answers (num, S) int64 of a split; see `make_split`."""

        def draw(draws: Draws) -> tuple[Tensor, Tensor]:
            questions = draws.numbers(self.num_cells) % len(self.alphabet) + 1
            return questions, self.answers(questions)

        return make_split(self, draw, num, seed, split)
