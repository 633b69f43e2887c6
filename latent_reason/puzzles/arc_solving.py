"""`solve` for ARC: the test pairs of one task, by votes over the augmentations trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latent_reason.config import check
from latent_reason.data.arc_canvas import ArcCanvas, draw
from latent_reason.data.arc_files import ArcTask, read_arc
from latent_reason.errors import ConfigError
from latent_reason.puzzles.arc_table import known_tasks
from latent_reason.puzzles.arc_voting import collect_votes, default_votes
from latent_reason.puzzles.folder import load_puzzle_model

REFINEMENT_STEPS = 16
BATCH_SIZE = 16


@dataclass(frozen=True)
class ArcSolution:
    """The model's answer to a test pair.

    Attributes:
        answer: the grid with the most votes, a line of digits for each row; None if no prediction
            is a grid.
        num_votes: predictions of that grid, out of num_predictions.
        confidence: 0 to 1, the mean of what the halting head says of them.
        refinement_steps: that were run for each prediction.
        right: by the output in the file; None if there is none.
    """

    answer: str | None
    num_votes: int
    num_predictions: int
    confidence: float
    refinement_steps: int
    right: bool | None

    @property
    def verdict(self) -> str:
        """Votes, confidence and check in one line."""
        known = {None: "", True: "; right by the answer in the file"}
        return (
            f"{'no grid, ' if self.answer is None else ''}"
            f"{self.num_votes} of {self.num_predictions} votes, "
            f"confidence {100 * self.confidence:.0f} %, {self.refinement_steps} refinement "
            f"step{'s' if self.refinement_steps > 1 else ''}, no rule to check it by"
            f"{known.get(self.right, '; wrong by the answer in the file')}"
        )


def solve_arc(
    path: str | Path,
    model: str | Path,
    refinement_steps: int = REFINEMENT_STEPS,
    num_votes: int | None = None,
    task: str | None = None,
) -> list[ArcSolution]:
    """Predict the outputs of the test pairs of an ARC task.

    A model with a puzzle table takes only tasks that it has learned an embedding of, see
    `arc_table.known_tasks`.

    Args:
        path: ARC file; the name of a single task is that of its file, as in the official ones.
        model: folder of a model trained on ARC.
        refinement_steps: for each prediction.
        num_votes: augmentations under which a test input is predicted, besides as it is; 10 if not
            given, or as many as the model has.
        task: name of the task to solve, if the file has many.

    Raises:
        DataError: the file is not usable.
        ConfigError: no such task, one that the model was not trained with, too many votes.
        CheckpointError: the model folder is not usable.
    """
    check(refinement_steps >= 1, "refinement_steps", refinement_steps, "at least 1")
    chosen, saved = _choose(path, task), load_puzzle_model(model)
    if saved.puzzle_name != ArcCanvas.name:
        raise ConfigError(f"model: made for puzzle {saved.puzzle_name!r}, expected one for ARC")
    dataset = known_tasks(model, saved.model.config, [chosen])
    num_votes = default_votes(dataset) if num_votes is None else num_votes
    votes = collect_votes(saved.model, dataset, num_votes, refinement_steps, BATCH_SIZE)
    solutions = []
    for test, pair in enumerate(chosen.test):
        best = next(iter(votes.ranked(test)), None)
        got = (None, 0) if best is None else (draw(best.grid), best.num_votes)
        sure = 0.0 if best is None else best.confidence
        right = None
        if pair.output is not None:
            right = best is not None and np.array_equal(best.grid, pair.output)
        solutions.append(
            ArcSolution(*got, votes.num_predictions[test], sure, refinement_steps, right)
        )
    return solutions


def _choose(path: str | Path, name: str | None) -> ArcTask:
    """Return the task of a file, by its name if there are many."""
    tasks = {task.name: task for task in read_arc(Path(path))}
    if name is None and len(tasks) > 1:
        raise ConfigError(f"{path}: holds {len(tasks):,} tasks; name one with --task")
    if name is not None and name not in tasks:
        raise ConfigError(f"{path}: has no task {name!r}; check the name")
    return tasks[name] if name is not None else next(iter(tasks.values()))
