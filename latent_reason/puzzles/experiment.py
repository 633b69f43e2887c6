"""One run of `recipes/train_puzzle.py`: its configuration, data, training, controls, results."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from latent_reason.checkpoint import latest_checkpoint
from latent_reason.config import PuzzleModelConfig, check, check_unread
from latent_reason.data.arc_canvas import ArcCanvas
from latent_reason.data.own_puzzle import named_puzzle
from latent_reason.data.puzzle_check import require_sound
from latent_reason.data.puzzle_files import (
    join,
    read_puzzles,
    refuse_several_solutions,
    subsample,
)
from latent_reason.data.puzzle_leaks import leaks_of_splits
from latent_reason.data.puzzles import Puzzle, PuzzleDataset
from latent_reason.errors import ConfigError, DataError
from latent_reason.model_folder import check_fit
from latent_reason.puzzles.evaluation import PuzzleEvaluator, trace
from latent_reason.puzzles.folder import load_puzzle_model, model_card, save_puzzle_model
from latent_reason.puzzles.model import PuzzleModel
from latent_reason.run_frame import RunFrame, facts_of, one_pass
from latent_reason.run_options import FrameConfig
from latent_reason.train_config import TrainConfig
from latent_reason.training import Trainer

NUM_SAMPLES = 4
"""Test puzzles shown step by step in the report."""


@dataclass(frozen=True, kw_only=True)
class PuzzleRunConfig(FrameConfig):
    """Everything that defines a run; a preset is one of these."""

    puzzle: str = "sudoku-4x4"
    """Kind and size, such as sudoku-9x9 or maze-15x15, or module:Name of your own."""
    train_data: tuple[str, ...] = ()
    """CSV files (question,answer) or Hub data sets to train on; none: generated puzzles."""
    test_data: str | None = None
    """Held-out file or Hub data set; needed with train_data."""
    num_train: int = 20_000
    """Puzzles to generate, or to draw from train_data (0: all of it)."""
    num_test: int = 1000
    """Test puzzles: generated, or the first ones of test_data (0: all of it)."""
    augment: bool = True
    """Draw a new symmetry of the puzzle for every training example."""
    hints: float = 0.0
    """Largest part of its answer's cells that a training example is given; each draws its own part
    below. It falls to zero over the training: from easy to hard."""
    start_from: Path | None = None
    """Folder of a saved puzzle model whose averaged weights training starts from; they stay the
    best until training makes something as good on the validation split. Their own training is in
    no figure of the run, and not in the search for leaks. Cycles and limit do not grow anew."""
    model: PuzzleModelConfig = field(default_factory=PuzzleModelConfig)
    """The network; vocab_size and num_cells are taken from the puzzle."""

    def __post_init__(self) -> None:
        self.settle()
        for name in ("num_train", "num_test"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        check(0 <= self.hints <= 1, "hints", self.hints, "a part from 0 to 1")
        share = self.train.through_base_from
        check(share == 1, "train.through_base_from", share, "1.0: for text only")
        if not self.model.puzzle_emb_size:
            for name in ("puzzle_learning_rate", "puzzle_weight_decay"):
                check_unread(self.train, name, "there is no puzzle table without puzzle_emb_size")
        if bool(self.train_data) != (self.test_data is not None):
            raise ConfigError("train_data and test_data: got one, expected both or none")
        if self.start_from is not None:
            expected = "None with --controls: its training is no part of the control's"
            check(not self.controls, "start_from", str(self.start_from), expected)
            halt = dataclasses.replace(self.train.halt, curriculum=None)
            train = dataclasses.replace(self.train, cycles_curriculum=None, halt=halt)
            object.__setattr__(self, "train", train)

    def resume_options(self) -> str:
        """Name a puzzle that is code: a folder alone may not."""
        return f" --puzzle {self.puzzle}" if ":" in self.puzzle else ""


def load_splits(config: PuzzleRunConfig) -> dict[str, PuzzleDataset]:
    """Return train, val and test; train draws symmetries if the configuration says so.

    Raises:
        ConfigError: for an unknown puzzle or one without a generator, or if there is nothing to
            train or test on.
        DataError: for unusable files, or if two of them hold the same question.
    """
    puzzle, seed = named_puzzle(config.puzzle), config.train.seed
    expected = "another puzzle, or a preset for ARC such as arc-smoke"
    check(not isinstance(puzzle, ArcCanvas), "puzzle", config.puzzle, expected)
    sizes = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
    if not config.train_data or config.test_data is None:
        for name in ("num_train", "num_test"):
            expected = "at least 1 without --train-data FILE --test-data FILE"
            check(getattr(config, name) >= 1, name, getattr(config, name), expected)
        made = {
            split: PuzzleDataset(puzzle, *puzzle.generate(num, seed, split), config.augment)
            for split, num in sizes.items()
        }
        for dataset in made.values():
            require_sound(dataset)
        return made
    whole = join([read_puzzles(name, puzzle, "train") for name in config.train_data])
    whole.augment = config.augment
    if len(whole) <= config.num_val:
        raise DataError(
            f"{', '.join(config.train_data)}: {len(whole)} puzzles, of which {config.num_val} are "
            "for validation; add puzzles or lower num_val"
        )
    # The same puzzles are held out whatever the seed, so that seeds share a validation split.
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    val, train = order[: config.num_val], order[config.num_val :]
    kept = whole.subset(train)
    if config.num_train > len(kept):
        raise DataError(
            f"num_train: {config.num_train} of {len(kept)} puzzles; 0 takes all of them"
        )
    if config.num_train:
        kept = subsample(kept, config.num_train, seed)
    test = read_puzzles(config.test_data, puzzle, "test")
    if config.num_test:
        test = test.subset(torch.arange(min(config.num_test, len(test))))
    return {"train": kept, "val": whole.subset(val), "test": test}


def copy_weights(model: PuzzleModel, folder: Path) -> None:
    """Give a model the weights of a saved one, which may be of another size of puzzle.

    Raises:
        CheckpointError: the folder is not usable.
        ConfigError: its weights have other shapes.
    """
    found, own = load_puzzle_model(folder).model.state_dict(), model.state_dict()
    found |= {name: own[name] for name in own.keys() & {"groups"}}
    try:
        check_fit(own, found)
    except ValueError as error:
        check(False, "start_from", str(folder), f"the weights of this net ({error})")
    model.load_state_dict(found)


class PuzzleRun(RunFrame[PuzzleRunConfig]):
    """One run: its data, its models, its table.

    Attributes:
        data: the splits.
        puzzle: their kind.
        num_leaks: test puzzles that are training or validation puzzles, up to symmetry.
        sample_split: the split of which the report shows answers.

    Raises:
        UserError: on bad options or data, before anything is written.
    """

    sample_split = "test"

    def __init__(self, name: str, config: PuzzleRunConfig, resume: bool) -> None:
        super().__init__("train_puzzle.py", name, config, resume)
        if config.start_from is not None and not resume:
            load_puzzle_model(config.start_from)  # refused before minutes of making puzzles
        if not config.train_data:
            self.say(f"making puzzles of {config.puzzle}")
        self.data = self.load()
        self.puzzle: Puzzle = self.data["test"].puzzle
        check(
            bool(self.puzzle.blank) or not config.model.symbol_states,
            "model.symbol_states",
            True,
            f"False: puzzles of {config.puzzle} have no blank cells",
        )
        if isinstance(self.data["train"], PuzzleDataset):
            self.num_leaks = self.warn_of_leaks()
        sizes = ", ".join(f"{split} {len(data):,}" for split, data in self.data.items())
        self.say(f"puzzles of {config.puzzle}: {sizes}")
        if config.start_from is not None and not resume:
            self.make_model(config.model)  # weights that do not fit are refused here
        for data in self.data.values():
            data.to(self.accelerator.device)

    def warn_of_leaks(self) -> int:
        """Say which splits share puzzles, turned or renamed at most; return `num_leaks`."""
        leaks = leaks_of_splits(self.data)
        for (train, test), found in leaks.items():
            if found:
                other, row = found[0]
                self.say(
                    f"warning: {len(found)} of {len(self.data[test])} {test} puzzles are in {train}"
                    f" up to symmetry, such as {self.data[test].place(row)}, which is "
                    f"{self.data[train].place(other)}; "
                    "see python -m latent_reason.data puzzle-leaks --help"
                )
        return len(
            {row for (_, test), found in leaks.items() if test == "test" for _, row in found}
        )

    def load(self) -> dict[str, Any]:
        """Return train, what the training loop needs of a dataset; val and test, PuzzleDatasets."""
        splits = load_splits(self.config)
        if self.config.train_data:
            looked_at = {split: refuse_several_solutions(data) for split, data in splits.items()}
            if any(looked_at.values()):
                first = ", ".join(f"{num} of {split}" for split, num in looked_at.items())
                self.say(f"no several solutions in the first {first}")
        return {**splits}

    def make_model(self, config: PuzzleModelConfig) -> PuzzleModel:
        """Return a new model for the run's puzzle, seeded."""
        torch.manual_seed(self.config.train.seed)
        config = dataclasses.replace(
            config, vocab_size=self.puzzle.vocab_size, num_cells=self.puzzle.num_cells
        )
        model = PuzzleModel(config, self.puzzle.groups())
        start = self.config.start_from  # also of a run that was killed before it saved anything
        if start is not None and latest_checkpoint(self.folder / "checkpoints") is None:
            copy_weights(model, start)
        return model

    def evaluator(self, split: str) -> PuzzleEvaluator:
        """Return an evaluator of a split in the precision of training."""
        return PuzzleEvaluator(self.data[split], self.accelerator, self.bf16)

    def make_trainer(
        self, folder: Path, config: PuzzleModelConfig, train: TrainConfig
    ) -> tuple[PuzzleModel, Trainer]:
        """Return a new model and what trains it in `folder`."""
        model, val = self.make_model(config), self.evaluator("val")
        limit = train.halt.halt_max_steps

        def evaluate() -> dict[str, float]:
            sweep = val.sweep(model, [limit])
            counter = sweep.at[limit]
            return {
                "val/exact_accuracy": counter.exact_accuracy,
                "val/accuracy": counter.accuracy,
                "val/halted_exact_accuracy": sweep.halted.exact_accuracy,
                "val/mean_refinement_steps": sweep.mean_steps,
            }

        def options(progress: float, limit: int) -> dict[str, Any]:
            if self.config.hints:
                self.data["train"].hints = self.config.hints * (1 - progress)
            cycles = train.cycles_at(progress, config.reasoner)
            return {"max_refinement_steps": limit, "cycles": cycles}

        trainer = Trainer(
            self.accelerator,
            model,
            self.data["train"],
            train,
            folder,
            evaluate,
            self.say,
            options,
            trained_before=self.config.start_from is not None,
        )
        return model, trainer

    def train_model(
        self, folder: Path, config: PuzzleModelConfig, train: TrainConfig
    ) -> tuple[PuzzleModel, Trainer]:
        """Train a model in `folder` and leave it with its best weights."""
        model, trainer = self.make_trainer(folder, config, train)
        self.train(trainer, folder)
        return model, trainer

    def choose_confidence(self, model: PuzzleModel) -> None:
        """Choose on val how sure the halting head has to be; Q-learning leaves no choice."""
        if not model.config.q_continue:
            limit = self.config.train.halt.halt_max_steps
            confidence = self.evaluator("val").choose_confidence(model, limit)
            model.config = dataclasses.replace(model.config, halt_confidence=confidence)

    def model_files(self) -> dict[str, Any]:
        """Return JSON files that the model folder gets besides config.json."""
        return {}

    def evaluate(self, model: PuzzleModel, trainer: Trainer) -> None:
        """Choose when to halt on val, then add the rows of the trained model on the test split."""
        self.choose_confidence(model)
        config, facts = self.config, facts_of(trainer) | {"num_leaks": self.num_leaks}
        steps = sorted({*config.refinement_steps, config.train.halt.halt_max_steps})
        facts["halt_confidence"] = model.config.halt_confidence
        fast = cast(PuzzleModel, torch.compile(model)) if config.train.compile else model
        sweep = self.evaluator("test").sweep(fast, steps)
        self.rows += sweep.rows("reasoner", task=config.puzzle, split="test", **facts)

    def run_control(self, reasoner: Trainer) -> None:
        """Train the same network in one pass for as long and add its row."""
        once, train = one_pass(self.config.model.reasoner, self.config.train, reasoner.seconds)
        self.say(f"control: the same network in one pass, {reasoner.seconds:.0f} s")
        folder = self.folder / "controls" / "one_pass"
        # Nothing to go on with: HRM's second output would cost a pass and learn nothing.
        config = dataclasses.replace(self.config.model, reasoner=once, q_continue=False)
        model, trainer = self.train_model(folder, config, train)
        sweep = self.evaluator("test").sweep(model, [1])
        about = {"task": self.config.puzzle, "split": "test", "num_leaks": self.num_leaks}
        about |= facts_of(trainer)
        self.rows += sweep.rows("control: same network, one pass", **about)[:1]

    def write(self, model: PuzzleModel) -> None:
        """Print the table; write results.json, samples.json, report.html and model/."""
        trained = self.config.train.halt.halt_max_steps
        steps = sorted({trained, *(n for n in self.config.refinement_steps if n <= 2 * trained)})
        samples = trace(model, self.data[self.sample_split], NUM_SAMPLES, steps)
        if not self.accelerator.is_main_process:
            return
        table = self.write_results(samples)
        card = model_card(model, self.config.puzzle, f"{self.origin}\n\n```\n{table}\n```")
        last = latest_checkpoint(self.folder / "checkpoints")
        raw = None if last is None else last.tensors["model"]
        folder = self.folder / "model"
        save_puzzle_model(folder, model, self.config.puzzle, card, raw, more=self.model_files())
        self.say(f"model: {self.folder / 'model'}")
