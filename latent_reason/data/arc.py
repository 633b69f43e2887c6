"""ARC as training data: one puzzle identifier per task and augmentation, augmented on the fly.

An augmentation is a turn or mirror with a permutation of the colours. Augmentation k of a task has
the identifier 1 + task * (1 + num_augmentations) + k, where k = 0 leaves the task as it is;
identifier 0 is the blank one. Tokens and canvas are those of `arc_canvas`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from latent_reason.config import check
from latent_reason.data.arc_canvas import NUM_CELLS, TRANSPOSE, ArcCanvas, ArcSymmetry, place
from latent_reason.data.arc_files import MAX_SIDE, NUM_COLOURS, ArcPair, ArcTask
from latent_reason.data.order import Draws, data_order
from latent_reason.data.puzzles import PAD, PuzzleDataset
from latent_reason.errors import DataError
from latent_reason.losses import IGNORE_INDEX


class _Pairs(NamedTuple):
    """N pairs as tensors: cells (N, 2, 900) uint8, sizes (N, 2, 2), tasks (N,) int64."""

    cells: Tensor
    sizes: Tensor
    tasks: Tensor

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, ArcPair]]) -> _Pairs:
        """Make them of (task, pair)s; a missing output has size 0, 0."""
        cells = np.zeros((len(pairs), 2, MAX_SIDE, MAX_SIDE), np.uint8)
        sizes = np.zeros((len(pairs), 2, 2), np.int64)
        for index, (_, pair) in enumerate(pairs):
            for side, grid in enumerate(pair):
                if grid is not None:
                    height, width = grid.shape
                    cells[index, side, :height, :width] = grid
                    sizes[index, side] = height, width
        tasks = torch.tensor([task for task, _ in pairs], dtype=torch.long)
        return cls(torch.from_numpy(cells).flatten(2), torch.from_numpy(sizes), tasks)


class ArcDataset:
    """Training pairs with fresh augmentations, and the test pairs to predict.

    Training pairs are the train pairs of all tasks and the test pairs of the training tasks; test
    pairs of evaluation tasks are never trained on. As in the originals an epoch visits every task
    once in random order, under one augmentation drawn for the visit, and takes each of its
    training pairs once, all but one of them somewhere else on the canvas.

    Args:
        training: tasks of which everything is training data.
        evaluation: tasks of which only the train pairs are.
        num_augmentations: of each task, besides the task as it is.
        seed: of the augmentations; puzzle embeddings only fit the seed that they trained with.

    Attributes:
        tasks: training, then evaluation tasks; the task of an identifier is an index into them.
        tests: (task, number of the test pair from 0) of each test pair to predict.

    Raises:
        DataError: no tasks, a name that two tasks have, a training task without a test output.
        ConfigError: a negative number of augmentations.
    """

    def __init__(
        self,
        training: Sequence[ArcTask],
        evaluation: Sequence[ArcTask],
        num_augmentations: int,
        seed: int,
    ) -> None:
        self.tasks = [*training, *evaluation]
        self.num_augmentations, self.seed = num_augmentations, seed
        self._check(len(training))
        pairs: list[tuple[int, ArcPair]] = []
        self.tests: list[tuple[int, int]] = []
        for index, task in enumerate(self.tasks):
            pairs += [(index, pair) for pair in task.train]
            if index < len(training):
                pairs += [(index, pair) for pair in task.test]
            else:
                self.tests += [(index, number) for number in range(len(task.test))]
        self._train = _Pairs.of(pairs)
        self._test = _Pairs.of([(task, self.tasks[task].test[n]) for task, n in self.tests])
        self._num_pairs = self._train.tasks.bincount(minlength=len(self.tasks))

    def _check(self, num_training: int) -> None:
        if not self.tasks:
            raise DataError("no ARC tasks; give at least one")
        num = self.num_augmentations
        check(num >= 0, "num_augmentations", num, "0 or more")
        names: set[str] = set()
        for index, task in enumerate(self.tasks):
            if task.name in names:
                raise DataError(
                    f"task {task.name!r} is there twice; a task of two sets may leak "
                    "its answer into training: remove one, or give --skip-leaks in a run"
                )
            names.add(task.name)
            for number, pair in enumerate(task.test if index < num_training else (), start=1):
                if pair.output is None:
                    raise DataError(
                        f"task {task.name!r}, test pair {number}: no output to train "
                        "on; add the solutions or use the task for evaluation"
                    )

    def __len__(self) -> int:
        return len(self._train.tasks)

    @property
    def num_tokens(self) -> int:
        """S, cells of the canvas."""
        return NUM_CELLS

    @property
    def num_puzzle_identifiers(self) -> int:
        """Rows of the puzzle table, with the blank one."""
        return 1 + len(self.tasks) * (1 + self.num_augmentations)

    def to(self, device: torch.device | str) -> ArcDataset:
        """Move to a device and return self."""
        self._train = _Pairs(*(tensor.to(device) for tensor in self._train))
        self._test = _Pairs(*(tensor.to(device) for tensor in self._test))
        return self

    def symmetries(self, puzzle_identifiers: Tensor) -> tuple[Tensor, Tensor]:
        """Return dihedral (B,) and colours (B, 10) of identifiers (B,), as in `ArcSymmetry`.

        A pure function of (seed, task, augmentation k), whatever the number of augmentations.
        Black stays black. Two augmentations of a task may happen to do the same.
        """
        tasks = (puzzle_identifiers - 1) // (1 + self.num_augmentations)
        k = (puzzle_identifiers - 1) % (1 + self.num_augmentations)
        draws = Draws(-1 - (tasks * 2**32 + k), self.seed)  # training draws are at 0 and above
        dihedral, colours = draws.below(8), 1 + draws.permutations(NUM_COLOURS - 1)
        colours = torch.cat((torch.zeros_like(colours[:, :1]), colours), dim=1)
        plain = torch.arange(NUM_COLOURS, device=k.device)
        return dihedral.where(k > 0, 0), colours.where((k > 0)[:, None], plain)

    def symmetry(self, puzzle_identifier: int) -> ArcSymmetry:
        """Return one of `symmetries`."""
        dihedral, colours = self.symmetries(torch.tensor([puzzle_identifier]))
        return ArcSymmetry(int(dihedral), tuple(colours[0].tolist()))

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Gather training pairs (B,) as they are, without augmentation or offset."""
        rows = rows.to(self._train.tasks.device)
        return self._placed(self._train, rows, torch.zeros_like(rows), rows.new_zeros(len(rows), 2))

    def at(self, positions: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the training examples at positions (B,) of the endless data order.

        A pure function of (seed, position), and of the dataset's seed for the augmentations.
        """
        device = self._train.tasks.device
        visited = self._visited(positions.cpu(), seed)
        rows, starts, num_pairs = (tensor.to(device) for tensor in visited)
        positions = positions.to(device)
        # The first two draws at the start of a visit belong to the visit.
        visit = Draws(starts, seed).numbers(2)
        own = Draws(positions, seed).numbers(4)[:, 2:]
        k = visit[:, 0] % (1 + self.num_augmentations)
        dihedral, _ = self.symmetries(self._identifiers(self._train.tasks[rows], k))
        largest = self._train.sizes[rows].amax(dim=1)
        turned = (dihedral & TRANSPOSE).bool()[:, None]
        largest = torch.where(turned, largest.flip(1), largest)
        stays = visit[:, 1] % num_pairs == positions - starts
        offsets = (own % (MAX_SIDE + 1 - largest)).masked_fill(stays[:, None], 0)
        return self._placed(self._train, rows, k, offsets)

    def test_batch(self, tests: Tensor, k: Tensor) -> dict[str, Tensor]:
        """Gather `tests` (B,) under augmentations k (B,), at the corner of the canvas.

        Returns:
            As `batch`; the labels of a test without known output are all -100.
        """
        device = self._test.tasks.device
        tests, k = tests.to(device), k.to(device)
        return self._placed(self._test, tests, k, tests.new_zeros(len(tests), 2))

    def plain_tests(self) -> PuzzleDataset:
        """Return the test pairs without augmentation, with their identifiers, on their device."""
        tests = torch.arange(len(self.tests))
        batch = self.test_batch(tests, torch.zeros_like(tests))
        answers = batch["labels"].masked_fill(batch["labels"] == IGNORE_INDEX, PAD)
        identifiers = batch["puzzle_identifiers"]
        return PuzzleDataset(ArcCanvas(), batch["inputs"], answers, False, identifiers)

    def test_identifiers(self, tests: Tensor, k: Tensor) -> Tensor:
        """Return the identifiers (B,) of `tests` (B,) under augmentations k (B,), on the CPU."""
        return self._identifiers(self._test.tasks.cpu()[tests], k)

    def _identifiers(self, tasks: Tensor, k: Tensor) -> Tensor:
        return 1 + tasks * (1 + self.num_augmentations) + k

    def _visited(self, positions: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Map positions (B,) to training pairs and to the visits to tasks that they are part of.

        Returns:
            Rows of the pairs, first positions of the visits, pairs of the visits; (B,) int64.
        """
        rows, starts = torch.empty_like(positions), torch.empty_like(positions)
        counts, epochs = torch.empty_like(positions), positions // len(self)
        first_rows = self._num_pairs.cumsum(0) - self._num_pairs
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            order = data_order(seed, epoch, len(self.tasks))
            ends = self._num_pairs[order].cumsum(0)
            at = positions[here] - epoch * len(self)
            visit = torch.searchsorted(ends, at, right=True)
            task = order[visit]
            start = ends[visit] - self._num_pairs[task]
            rows[here] = first_rows[task] + at - start
            starts[here], counts[here] = epoch * len(self) + start, self._num_pairs[task]
        return rows, starts, counts

    def _placed(self, pairs: _Pairs, rows: Tensor, k: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """Return rows (B,) under augmentations k (B,) at offsets (B, 2) of the canvas."""
        identifiers = self._identifiers(pairs.tasks[rows], k)
        dihedral, colours = self.symmetries(identifiers)
        cells, sizes = pairs.cells[rows], pairs.sizes[rows]
        inputs, labels = (
            place(cells[:, side], sizes[:, side], dihedral, colours, offsets) for side in (0, 1)
        )
        return {
            "inputs": inputs,
            "labels": labels.masked_fill(labels == PAD, IGNORE_INDEX),
            "puzzle_identifiers": identifiers,
        }
