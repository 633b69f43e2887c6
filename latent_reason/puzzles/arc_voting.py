"""ARC by votes: predict a test input under many augmentations, undo them, count equal grids.

    votes = collect_votes(model, dataset, num_votes=100, refinement_steps=16, batch_size=64)
    votes.pass_at(2), votes.write_submission(path)

A prediction without a grid is no vote. Grids are ranked as by HRM and TRM: by the number of votes,
then by the mean halting confidence sigmoid(q_halt_logits) of their votes.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from latent_reason.config import check
from latent_reason.data.arc import ArcDataset
from latent_reason.data.arc_canvas import ArcSymmetry, crop
from latent_reason.data.arc_files import Grid
from latent_reason.errors import DataError
from latent_reason.files import write_json
from latent_reason.metrics import wilson_interval
from latent_reason.puzzles.evaluation import refine
from latent_reason.puzzles.model import PuzzleModel

NUM_VOTES = 10
PASS_AT = (1, 2, 5, 10, 100, 1000)
NUM_ATTEMPTS = 2
PLACEHOLDER = [[0]]  # a submission needs a grid for each attempt


def default_votes(dataset: ArcDataset) -> int:
    """Return how many augmentations vote if nothing is said: 10, or as many as there are."""
    return min(NUM_VOTES, dataset.num_augmentations)


def evaluation_batches(
    dataset: ArcDataset, num_augmentations: int, batch_size: int
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Go through the test pairs of the evaluation tasks, as they are and under augmentations.

    The augmentations are the outer loop: whoever stops early has votes for every test.

    Args:
        dataset: with the tasks, on the device for the batches.
        num_augmentations: of each test, besides the test as it is; those that the dataset trains
            with come first to last.
        batch_size: of all batches but the last.

    Yields:
        (tests, batch): indices (B,) int64 on the CPU into `dataset.tests`, and inputs, labels,
        puzzle_identifiers as the model takes them.

    Raises:
        ConfigError: more augmentations than the dataset has: they have no trained identifier.
    """
    parts = (part.split(batch_size) for part in _predictions(dataset, num_augmentations))
    for tests, k in zip(*parts, strict=True):
        if len(tests):
            yield tests, dataset.test_batch(tests, k)


def _predictions(dataset: ArcDataset, num_augmentations: int) -> tuple[Tensor, Tensor]:
    """Return tests and augmentations (N,) to predict; an original's tasks may have fewer."""
    most, num_tests = dataset.num_augmentations, len(dataset.tests)
    expected = f"0 to the model's {most} augmentations"
    check(0 <= num_augmentations <= most, "votes", num_augmentations, expected)
    tests = torch.arange(num_tests).repeat(1 + num_augmentations)
    k = torch.arange(1 + num_augmentations).repeat_interleave(num_tests)
    there = dataset.test_identifiers(tests, k) > 0
    return tests[there], k[there]


def collect_votes(
    model: PuzzleModel,
    dataset: ArcDataset,
    num_votes: int,
    refinement_steps: int,
    batch_size: int,
    accelerator: Accelerator | None = None,
    bf16: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> ArcVotes:
    """Predict the test pairs of a dataset as they are and under augmentations, count the grids.

    Args:
        model: on the device of the dataset.
        dataset: with the tasks to evaluate.
        num_votes: augmentations of each test, besides the test as it is.
        refinement_steps: for each prediction.
        batch_size: predictions at once, in all processes together.
        accelerator: every process takes a share of each batch and gets the votes of all.
        bf16: whether to compute in bf16.
        say: takes a line on how far it is, ten times.

    Raises:
        ConfigError: more votes than the dataset has augmentations.
    """
    votes = ArcVotes(dataset)
    model.eval()
    total, done = len(_predictions(dataset, num_votes)[0]), 0
    for tests, batch in evaluation_batches(dataset, num_votes, batch_size):
        share = batch if accelerator is None else _share(batch, accelerator)
        last = deque(refine(model, share, refinement_steps, bf16), maxlen=1)[0]
        tokens, q_halt_logits = last.logits.argmax(dim=-1), last.q_halt_logits
        if accelerator is not None:
            tokens = accelerator.gather(tokens)[: len(tests)]
            q_halt_logits = accelerator.gather(q_halt_logits)[: len(tests)]
        votes.add(tests, batch["puzzle_identifiers"], tokens, q_halt_logits)
        before, done = done, done + len(tests)
        if 10 * done // total > 10 * before // total:
            say(f"votes {done:,}/{total:,}")
    return votes


def _share(batch: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Return this process's rows of a batch, as many as the others', the last one repeated."""
    size = len(batch["inputs"])
    num = -(-size // accelerator.num_processes)
    rows = torch.arange(num) + num * accelerator.process_index
    rows = rows.clamp(max=size - 1).to(batch["inputs"].device)
    return {key: value[rows] for key, value in batch.items()}


@dataclass(frozen=True, eq=False)
class Candidate:
    """A grid that got votes: (height, width) uint8, their number, their mean confidence 0..1."""

    grid: Grid
    num_votes: int
    confidence: float


class ArcVotes:
    """Collects predictions for the test pairs of a dataset and ranks them.

    Args:
        dataset: whose `tests` and identifiers the predictions belong to.

    Attributes:
        num_predictions: for each test, those without a grid too.
    """

    def __init__(self, dataset: ArcDataset) -> None:
        self.dataset = dataset
        self.num_predictions = [0] * len(dataset.tests)
        # For each test: confidences of the votes for a grid, by its shape and cells.
        self._votes: list[dict[tuple[int, int, bytes], list[float]]] = [
            defaultdict(list) for _ in dataset.tests
        ]

    def add(
        self,
        tests: Tensor,
        puzzle_identifiers: Tensor,
        predictions: Tensor,
        q_halt_logits: Tensor,
    ) -> None:
        """Count predictions; those without a grid count for nothing.

        Args:
            tests: (B,) indices of `dataset.tests`.
            puzzle_identifiers: (B,) int64, which name the augmentation to undo.
            predictions: (B, 900) tokens.
            q_halt_logits: (B,) of the halting head.
        """
        dihedral, colours = self.dataset.symmetries(puzzle_identifiers.cpu())
        confidences = q_halt_logits.detach().cpu().double().sigmoid().nan_to_num(0.0)
        rows = zip(
            tests.tolist(),
            predictions.cpu().numpy(),
            dihedral.tolist(),
            colours.tolist(),
            confidences.tolist(),
            strict=True,
        )
        for test, tokens, turn, names, confidence in rows:
            self.num_predictions[test] += 1
            grid = crop(tokens)
            if grid is not None:
                grid = ArcSymmetry(turn, tuple(names)).inverse().apply(grid)
                height, width = grid.shape
                self._votes[test][height, width, grid.tobytes()].append(confidence)

    def ranked(self, test: int) -> list[Candidate]:
        """Return the grids predicted for a test (index of `dataset.tests`), the best first."""
        candidates = []
        for (height, width, cells), confidences in sorted(self._votes[test].items()):
            grid = np.frombuffer(cells, np.uint8).reshape(height, width)
            mean = math.fsum(confidences) / len(confidences)
            candidates.append(Candidate(grid, len(confidences), mean))
        return sorted(candidates, key=lambda c: (c.num_votes, c.confidence), reverse=True)

    def pass_at(self, k: int) -> float:
        """Return the share of tests with the right grid among the first k.

        As in the originals and the official score: the mean over evaluation tasks of the share of
        right test pairs. A test without prediction is wrong.

        Raises:
            DataError: no evaluation tasks, or one without solutions.
        """
        shares: dict[int, list[bool]] = defaultdict(list)
        for test, (task, number) in enumerate(self.dataset.tests):
            answer = self.dataset.tasks[task].test[number].output
            if answer is None:
                raise DataError(
                    f"task {self.dataset.tasks[task].name!r}, test pair {number + 1}: no output to "
                    "compare with; add the solutions, or only write a submission"
                )
            first = self.ranked(test)[:k]
            shares[task].append(any(np.array_equal(c.grid, answer) for c in first))
        if not shares:
            raise DataError("no evaluation tasks to score; give at least one")
        return math.fsum(sum(right) / len(right) for right in shares.values()) / len(shares)

    def submission(self) -> dict[str, list[dict[str, list[list[int]]]]]:
        """Return the first two grids of every test in Kaggle's form, [[0]] for a missing one."""
        tasks: dict[str, list[dict[str, list[list[int]]]]] = defaultdict(list)
        for test, (task, _) in enumerate(self.dataset.tests):
            grids = [candidate.grid.tolist() for candidate in self.ranked(test)[:NUM_ATTEMPTS]]
            grids += [PLACEHOLDER] * (NUM_ATTEMPTS - len(grids))
            attempts = {f"attempt_{number}": grid for number, grid in enumerate(grids, start=1)}
            tasks[self.dataset.tasks[task].name].append(attempts)
        return dict(tasks)

    def write_submission(self, path: Path) -> None:
        """Write `submission` as JSON; missing folders are made.

        Raises:
            DataError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.submission())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; give a path that can be written") from error


def pass_rows(
    votes: ArcVotes, system: str, num_votes: int, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a row of results for each k of PASS_AT that so many votes allow.

    Args:
        votes: on tasks of which all answers are known.
        system: the name of the model in the rows.
        num_votes: besides the tests as they are.
        about: what the rows say of model and data.
    """
    num_tasks = len({task for task, _ in votes.dataset.tests})
    rows = []
    for k in (k for k in PASS_AT if k <= 1 + num_votes):
        score = votes.pass_at(k)
        row = {
            "system": f"{system}, pass@{k} of {1 + num_votes} votes",
            "n": num_tasks,
            "exact_accuracy": score,
            "ci95": list(wilson_interval(score * num_tasks, num_tasks)),
            "num_test_pairs": len(votes.dataset.tests),
        }
        rows.append(row | about)
    return rows
