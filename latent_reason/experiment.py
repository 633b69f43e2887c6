"""One run of a recipe: what defines it, its base, its data and its folder.

`comparison.py` trains and evaluates in it; the recipes hold presets and the command line.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from latent_reason.base_check import check_base
from latent_reason.config import LatentReasonerConfig, check, check_unread
from latent_reason.data.features import StateCache
from latent_reason.data.hub import read_examples
from latent_reason.data.jsonl import find_leaks
from latent_reason.data.tasks import Example, find_task
from latent_reason.data.text import TextDataset
from latent_reason.errors import ConfigError, DataError
from latent_reason.evaluation import Evaluator
from latent_reason.files import write_json
from latent_reason.llm import FrozenLLM
from latent_reason.run_frame import RunFrame
from latent_reason.run_options import FrameConfig

UNLIKE = ("wording", "longer")
"""Splits of a generated task that training is not like."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(FrameConfig):
    """Everything that defines a run; a preset is one of these."""

    base: str = "embedded"
    """Hub name or local folder of a causal LM; "embedded" is the small one in this package."""
    task: str = "permutations"
    """Generated text task; see `python -m latent_reason.data list`."""
    train_data: Path | None = None
    """Your own data in place of the task: a JSONL file with `prompt` and `answer`, or the name of a
    Hub data set with these columns (its train split)."""
    test_data: Path | None = None
    """Held-out file or Hub data set (its test split); needed with train_data."""
    num_train: int = 20_000
    """Training examples: generated, or the first rows of train_data (0: all of them)."""
    num_test: int = 1000
    """Test examples: generated, or the first rows of test_data (0: all of them)."""
    model: LatentReasonerConfig = field(default_factory=LatentReasonerConfig)
    """Reader, reasoner, writer; num_slots 0 takes what the longest answer needs."""

    def __post_init__(self) -> None:
        self.settle()
        least = 1 if self.train_data is None else 0
        for name in ("num_train", "num_test"):
            check(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        if (self.train_data is None) != (self.test_data is None):
            raise ConfigError("train_data and test_data: got one, expected both or none")
        curriculum = self.train.cycles_curriculum
        check(curriculum is None, "train.cycles_curriculum", curriculum, "None: for puzzles only")
        for name in ("puzzle_learning_rate", "puzzle_weight_decay"):
            check_unread(self.train, name, "for puzzles only")
        if self.model.writer == "head":
            check_unread(self.train, "through_base_from", "writer 'head' does not read it")


def load_examples(config: RunConfig, say: Callable[[str], None]) -> dict[str, list[Example]]:
    """Return train, val and test examples, and the task's splits that training is not like.

    Args:
        config: of the run.
        say: told which files have more rows than are taken.

    Raises:
        DataError: on malformed files, or prompts that stand in two splits.
    """
    if config.train_data is None or config.test_data is None:
        task = find_task(config.task)
        sizes = {"train": config.num_train, "val": config.num_val, "test": config.num_test}
        sizes |= dict.fromkeys(UNLIKE, config.num_test)
        if config.model.reasoner.mixer == "mlp":
            del sizes["longer"]  # its answers may need more slots than such a net is made for
        return {split: task.generate(split, num, config.train.seed) for split, num in sizes.items()}
    rows = read_examples(config.train_data, "train")
    test = read_examples(config.test_data, "test")
    if len(rows) <= config.num_val:
        raise DataError(
            f"{config.train_data}: {len(rows)} rows, of which the last {config.num_val} are for "
            "validation; add rows or lower num_val"
        )
    # The rows of validation follow those of training, so that numbers of rows are lines of a file.
    most = config.num_train + config.num_val if config.num_train else 0
    rows = first_rows(rows, most, config.train_data, "--num-train", say)
    test = first_rows(test, config.num_test, config.test_data, "--num-test", say)
    train, val = rows[: -config.num_val], rows[-config.num_val :]
    for name, first, own, others in (
        (config.test_data, 1, test, rows),
        (config.train_data, len(train) + 1, val, train),
    ):
        leaks = find_leaks(others, own)
        if leaks:
            held = "held out for test" if own is test else "held out for validation"
            raise DataError(
                f"{name}:{leaks[0][1] + first}: this prompt, {held}, is line {leaks[0][0] + 1} of "
                f"{config.train_data} too ({len(leaks)} such rows); remove it from one of them"
            )
    return {"train": train, "val": val, "test": test}


def first_rows(
    rows: list[Example], most: int, source: Path, option: str, say: Callable[[str], None]
) -> list[Example]:
    """Return the first `most` rows, all of them if it is 0; say so where rows are left out."""
    if not 0 < most < len(rows):
        return rows
    say(f"{source}: the first {most} of {len(rows)} rows are taken; {option} 0 takes all")
    return rows[:most]


class Run(RunFrame[RunConfig]):
    """One run: base, data, run folder and the rows of its table.

    Raises:
        UserError: on a bad base, data or folder, before anything is written.
    """

    def __init__(self, name: str, config: RunConfig, resume: bool) -> None:
        super().__init__("train_latent_trm.py", name, config, resume)
        self.llm = FrozenLLM.load(config.base)
        self.llm.num_features(config.model.read_layers)
        check_base(self.llm)
        self.examples = load_examples(config, self.say)
        wanted = config.model.num_slots or None
        files = {"train": config.train_data, "val": config.train_data, "test": config.test_data}
        train = self.dataset("train", wanted, files)
        self.num_slots = train.labels.shape[1]
        self.datasets = {"train": train}
        for split in (split for split in self.examples if split != "train"):
            wanted = None if split == "longer" else self.num_slots
            self.datasets[split] = self.dataset(split, wanted, files)
        self.task = config.train_data.stem if config.train_data else config.task

    def dataset(
        self, split: str, num_slots: int | None, files: dict[str, Path | None]
    ) -> TextDataset:
        """Tokenise a split; errors name the file it came from."""
        source = str(files.get(split) or f"{self.config.task}/{split}")
        rows, first = self.examples[split], 0
        if split == "val" and self.config.train_data is not None:
            # The last lines of train_data; errors must tell the line in the file.
            first = len(self.examples["train"])
            rows = [*self.examples["train"], *rows]
        data = TextDataset.build(rows, self.llm.tokenizer, num_slots, source)
        more = self.num_after(data.labels.shape[1])
        self.llm.check_prompts(data.input_ids, data.attention_mask, f"{source}:", more)
        return TextDataset(rows[first:], **data.batch(torch.arange(first, len(rows))))

    def num_after(self, num_slots: int) -> int:
        """Return how many tokens follow a prompt: delimiter, answer and, where used, soft tokens.

        Writer head alone needs the prompt only, but the bare base, a row of every table, writes
        its answer after it, and among the controls are pause slots.
        """
        delimiter, _ = self.llm.embed_text(self.config.model.answer_delimiter, 1)
        soft = self.config.model.writer == "soft" or self.config.controls
        return len(delimiter) + (1 + soft) * num_slots

    def prepare(self) -> None:
        """Move the base to the device, make the run folder, read all prompts once."""
        self.llm.to(self.accelerator.device)
        self.open_folder()
        self.base_digest = self.llm.sha256()
        # Beside the states, which go when the run is done: a resumed run needs the same seconds.
        start, seconds = time.perf_counter(), self.folder / "read_seconds.json"
        with self.accelerator.main_process_first():
            self.data = {"train": self.cached("train")}
            if not seconds.exists():
                write_json(seconds, time.perf_counter() - start)
            self.read_seconds = float(seconds.read_text())
            # Writer soft generates from the prompts themselves.
            others = {} if self.config.model.writer == "soft" else self.datasets
            self.data = self.datasets | self.data | {split: self.cached(split) for split in others}

    def cached(self, split: str) -> StateCache:
        """Let the base read a split once and keep its states on disk."""

        def progress(done: int, total: int) -> None:
            if done == total or done % 5120 == 0:
                self.say(f"base reads {split} prompts: {done}/{total}")

        layers = self.config.model.read_layers
        folder = self.folder / "states"
        return StateCache(self.datasets[split], self.llm, layers, folder, progress=progress)

    def evaluator(self, split: str) -> Evaluator:
        """Return an evaluator of a split in the precision of training."""
        return Evaluator(self.data[split], self.accelerator, self.bf16)
