"""One run of `recipes/train_puzzle.py` on ARC: train on demonstrations, vote, submit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latent_reason.config import PuzzleModelConfig, check
from latent_reason.data.arc import ArcDataset
from latent_reason.data.arc_files import ArcTask
from latent_reason.data.arc_hub import find_arc
from latent_reason.data.arc_leaks import find_arc_leaks
from latent_reason.errors import ConfigError, DataError
from latent_reason.model_folder import TASKS
from latent_reason.puzzles.arc_table import read_table, table_of
from latent_reason.puzzles.arc_voting import ArcVotes, collect_votes, pass_rows
from latent_reason.puzzles.evaluation import PuzzleEvaluator
from latent_reason.puzzles.experiment import PuzzleRun, PuzzleRunConfig
from latent_reason.puzzles.model import PuzzleModel
from latent_reason.training import Trainer

MIN_SHOWN = 2
"""Demonstrations that a task keeps when one is held out for validation."""


@dataclass(frozen=True, kw_only=True)
class ArcRunConfig(PuzzleRunConfig):
    """Everything that defines a run on ARC."""

    puzzle: str = "arc"
    """arc."""
    train_data: tuple[str, ...] = ()
    """ARC files, folders or Hub names of which everything is training data, test pairs too."""
    test_data: str | None = None
    """ARC file, folder or Hub name to evaluate on; its demonstrations are training data."""
    num_train: int = 0
    """Tasks to draw from train_data (0: all of them)."""
    num_val: int = 64
    """Tasks of train_data of which one demonstration is held out for evaluation in training."""
    num_test: int = 0
    """Tasks of test_data to train for and to evaluate, the first ones (0: all of them)."""
    skip_leaks: bool = False
    """Leave out tasks of train_data that are to be evaluated, also under another name."""
    num_augmentations: int = 1000
    """Augmentations of each task to train with, each with an embedding of its own."""
    num_votes: int = 1000
    """Augmentations under which a test pair is predicted, besides as it is."""

    def __post_init__(self) -> None:
        check(self.puzzle == "arc", "puzzle", self.puzzle, "'arc' with this preset")
        super().__post_init__()
        check(self.augment, "augment", False, "True; for none take num_augmentations 0")
        check(self.hints == 0, "hints", self.hints, "0 for ARC")
        num, votes = self.num_augmentations, self.num_votes
        check(num >= 0, "num_augmentations", num, "at least 0")
        check(0 <= votes <= num, "num_votes", votes, f"0 to num_augmentations = {num}")


def hold_out(
    training: Sequence[ArcTask], num: int
) -> tuple[list[ArcTask], dict[str, tuple[Any, ...]]]:
    """Take the last demonstration out of `num` tasks, always the same ones.

    Returns:
        The tasks without them, in the same order; the pairs taken out, by name of the task.

    Raises:
        DataError: if there are not as many tasks with enough demonstrations.
    """
    able = [i for i, task in enumerate(training) if len(task.train) > MIN_SHOWN]
    if len(able) < num:
        raise DataError(
            f"train_data: {len(able)} tasks with more than {MIN_SHOWN} demonstrations, of which "
            f"{num} are to give one for validation; add tasks or lower num_val"
        )
    kept, held = [*training], {}
    for choice in np.random.default_rng(0).permutation(len(able))[:num].tolist():
        task = training[able[choice]]
        kept[able[choice]] = dataclasses.replace(task, train=task.train[:-1])
        held[task.name] = task.train[-1:]
    return kept, held


class ArcRun(PuzzleRun):
    """One run: trains on demonstrations, votes on the test pairs, writes submission.json.

    Attributes:
        tasks: the dataset that is trained on, with the test pairs to predict.
        num_leaks: tasks to evaluate that are in the training data under another name.
        scored: whether the answers to all test pairs are known.

    Raises:
        UserError: on bad options or data, before anything is written.
    """

    config: ArcRunConfig  # type: ignore[assignment]

    def load(self) -> dict[str, Any]:
        """Return train, an ArcDataset; val and test, pairs as they are."""
        config, seed = self.config, self.config.train.seed
        if not config.train_data or config.test_data is None:
            raise ConfigError(
                "train_data and test_data: got none, expected ARC files such as "
                "arc-agi_training_challenges.json, with the solutions beside them, or Hub names"
            )
        training = [task for name in config.train_data for task in find_arc(name, "train")]
        if config.num_train > len(training):
            raise DataError(f"num_train: {config.num_train} tasks of {len(training)}; ask for less")
        if config.num_train:
            drawn = np.random.default_rng(seed).permutation(len(training))[: config.num_train]
            training = [training[index] for index in sorted(drawn.tolist())]
        evaluation = find_arc(config.test_data, "test")[: config.num_test or None]
        training = self._without_leaks(training, evaluation)
        kept, held = hold_out(training, config.num_val)
        num = config.num_augmentations
        self.tasks = ArcDataset(kept, evaluation, num, seed)
        if config.start_from is not None and config.model.puzzle_emb_size and not self.resume:
            self._check_table(config.start_from)
        # The same tasks in the same order have the same identifiers.
        val = [dataclasses.replace(task, test=held.get(task.name, ())) for task in self.tasks.tasks]
        self.scored = all(pair.output is not None for task in evaluation for pair in task.test)
        expected = "False: test_data has no answers to some of its test pairs"
        check(self.scored or not config.controls, "controls", True, expected)
        self.sample_split = "test" if self.scored else "val"
        return {
            "train": self.tasks,
            "val": ArcDataset([], val, num, seed).plain_tests(),
            "test": self.tasks.plain_tests(),
        }

    def _check_table(self, folder: Path) -> None:
        """Refuse to start from embeddings of other tasks or augmentations."""
        table = read_table(folder, self.tasks.num_puzzle_identifiers)._asdict()
        expected = "a model of the same tasks, num_augmentations and seed"
        check(table == table_of(self.tasks), "start_from", str(folder), expected)

    def _without_leaks(self, training: list[ArcTask], evaluation: list[ArcTask]) -> list[ArcTask]:
        """Return the tasks to train on; say which are to be evaluated, or leave these out."""
        leaks = find_arc_leaks(training, evaluation)
        if leaks and self.config.skip_leaks:
            found = {leak.found_as for leak in leaks}
            self.say(f"left out: {len(found)} tasks of train_data that are to be evaluated")
            return self._without_leaks([t for t in training if t.name not in found], evaluation)
        self.num_leaks = len(leaks)
        if leaks:
            answers = sum(leak.test_shared for leak in leaks)
            self.say(
                f"warning: {len(leaks)} of {len(evaluation)} tasks to evaluate are in train_data, "
                f"{answers} of them with a test answer, such as {leaks[0].task} as "
                f"{leaks[0].found_as}; --skip-leaks leaves them out, "
                "python -m latent_reason.data arc-leaks lists them"
            )
        return training

    def make_model(self, config: PuzzleModelConfig) -> PuzzleModel:
        """Return a new model with a row of its puzzle table for each identifier, seeded."""
        num = self.tasks.num_puzzle_identifiers if config.puzzle_emb_size else 1
        return super().make_model(dataclasses.replace(config, num_puzzles=num))

    def evaluator(self, split: str) -> PuzzleEvaluator:
        """Return an evaluator of pairs as they are, in batches as large as those of training."""
        size = self.config.train.batch_size
        return PuzzleEvaluator(self.data[split], self.accelerator, self.bf16, size)

    def vote(self, model: PuzzleModel) -> ArcVotes:
        """Predict every test pair under num_votes augmentations and as it is, count the grids."""
        config = self.config
        return collect_votes(
            model,
            self.tasks,
            config.num_votes,
            config.train.halt.halt_max_steps,
            config.train.batch_size,
            self.accelerator,
            self.bf16,
            self.say,
        )

    def evaluate(self, model: PuzzleModel, trainer: Trainer) -> None:
        """Add rows for single predictions and for votes; write submission.json."""
        config, limit = self.config, self.config.train.halt.halt_max_steps
        if self.scored:
            super().evaluate(model, trainer)
        else:
            self.choose_confidence(model)
        counter = self.evaluator("val").sweep(model, [limit]).at[limit]
        self.add("reasoner", config.puzzle, "val", limit, counter)
        votes = self.vote(model)
        if self.accelerator.is_main_process:
            votes.write_submission(self.folder / "submission.json")
        self.say(f"submission: {self.folder / 'submission.json'}")
        if not self.scored:
            self.say("not scored: test_data has no answers to all of its test pairs")
            return
        about = {
            "task": config.puzzle,
            "split": "test",
            "refinement_steps": limit,
            "num_leaks": self.num_leaks,
        }
        self.rows += pass_rows(votes, "reasoner", config.num_votes, about)

    def model_files(self) -> dict[str, Any]:
        """Return tasks.json, by which `solve` finds identifiers."""
        return {TASKS: table_of(self.tasks)}
