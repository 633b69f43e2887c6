"""What every recipe does: a run folder, training with resume, the results."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, Generic

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, parse_flag_from_env

from latent_reason.config import ReasonerConfig
from latent_reason.environment import (
    check_compiler,
    check_world,
    environment,
    peak_gpu_memory_gib,
    peak_memory_gib,
    resumed_environment,
)
from latent_reason.errors import ConfigError
from latent_reason.files import write_json
from latent_reason.metrics import AccuracyCounter
from latent_reason.report import write_report
from latent_reason.results import format_table
from latent_reason.run_lock import run_lock
from latent_reason.run_options import Config
from latent_reason.train_config import HaltConfig, TrainConfig
from latent_reason.training import Trainer, local_batch_size, use_bf16


def start_time() -> str:
    """Return the time now, as the main process sees it, for the name of the run folder."""
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    now = broadcast(torch.tensor(int(time.time()), device=state.device))
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(now.item()))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


class RunFrame(Generic[Config]):
    """One run of a recipe: its processes, its folder, the rows of its table.

    Args:
        script: name of the recipe's file, for the command that resumes.
        name: of the preset.
        config: the resolved configuration.
        resume: whether the folder holds a run to go on with.

    Raises:
        ConfigError: on a missing tracker, a batch size or a number of processes that cannot be.
    """

    def __init__(self, script: str, name: str, config: Config, resume: bool) -> None:
        self.script, self.name, self.config, self.resume = script, name, config, resume
        self.started = time.perf_counter()
        tracker = None if config.log_with == "none" else config.log_with
        if tracker is not None and find_spec(tracker) is None:
            raise ConfigError(f"log_with: {tracker} is not installed; run pip install {tracker}")
        self.folder = config.output_dir or Path("runs") / f"{name}-{start_time()}"
        self.accelerator = Accelerator(
            mixed_precision="no",  # the training loop itself decides on bf16
            log_with=tracker,
            project_dir=str(self.folder),
        )
        check_world(self.accelerator)
        local_batch_size(config.train, self.accelerator.num_processes)
        if config.train.compile:
            check_compiler(self.accelerator.device)
        self.rows: list[dict[str, Any]] = []
        self.about = environment()
        self.say(f"preset {name}, run folder {self.folder}")

    @property
    def bf16(self) -> bool:
        """Whether to compute in bf16, in training and evaluation alike."""
        return use_bf16(self.config.train, self.accelerator.device)

    @property
    def origin(self) -> str:
        """Where a model comes from, in Markdown, for its card."""
        about = self.about
        what = f"Preset {self.name}, seed {self.config.train.seed}, commit {about['commit']}"
        return f"{what}: `{about['command']}`"

    def say(self, text: str) -> None:
        """Print on the main process, at once."""
        if self.accelerator.is_main_process:
            print(text, flush=True)  # noqa: T201

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the run folder, by a lock of the main process, inside a `with` block.

        Raises:
            SystemExit: SIGINT or SIGTERM came outside of the training loop, which handles its own;
                how to go on is said.
        """
        main = self.accelerator.is_main_process
        with run_lock(self.folder) if main else contextlib.nullcontext():
            numbers = (signal.SIGINT, signal.SIGTERM)
            before = [signal.signal(number, _interrupt) for number in numbers]
            try:
                yield
            except KeyboardInterrupt as error:
                number = int(error.args[0]) if error.args else int(signal.SIGINT)
                self.say(f"stopped by signal {number}")
                if (self.folder / "config.json").exists():
                    self.say_how_to_resume()
                raise SystemExit(128 + number) from None
            finally:
                for number, handler in zip(numbers, before, strict=True):
                    signal.signal(number, handler)

    def say_how_to_resume(self) -> None:
        """Print the command that goes on with this run."""
        options = self.config.resume_options()
        self.say(f"resume with: python recipes/{self.script} --resume {self.folder}{options}")

    def open_folder(self) -> None:
        """Make the run folder with config.json and environment.json, start the tracker.

        A resumed run keeps its environment.json, which gets a list `resumed` of what was other.

        Raises:
            ConfigError: the folder holds another run already.
            DataError: environment.json is damaged.
        """
        if self.accelerator.is_main_process:
            if not self.resume and (self.folder / "config.json").exists():
                raise ConfigError(
                    f"{self.folder}: holds a run already; resume it with --resume {self.folder} "
                    "or choose another --output-dir"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self.resume:
                values = {"preset": self.name} | self.config.to_dict()
                write_json(self.folder / "config.json", values)
            path = self.folder / "environment.json"
            if self.resume and path.exists():
                self.about = resumed_environment(path, self.about)
            write_json(path, self.about)
        if self.config.log_with != "none":
            self.accelerator.init_trackers("latent_reason", config={"preset": self.name})

    def train(self, trainer: Trainer, folder: Path) -> None:
        """Resume if there is something to resume, train to the end, take the best weights.

        Raises:
            SystemExit: a signal stopped the training; a checkpoint is saved.
        """
        if trainer.resume():
            self.say(f"resumed {folder} at step {trainer.step}")
        stopped = trainer.run()
        if stopped:
            self.say(
                f"stopped by signal {stopped} after step {trainer.step}; a checkpoint is saved"
            )
            self.say_how_to_resume()
            raise SystemExit(128 + stopped)
        trainer.use_best_weights()
        self.accelerator.free_memory()  # it would hold every trained model to the end of the run

    def add(
        self,
        system: str,
        task: str,
        split: str,
        steps: int | None,
        counter: AccuracyCounter,
        **facts: Any,
    ) -> None:
        """Add a row to the table."""
        row = {"system": system, "task": task, "split": split, "refinement_steps": steps}
        self.rows.append(row | counter.as_dict() | facts)

    def results(self, **facts: Any) -> dict[str, Any]:
        """Return what results.json holds, see `results.py`."""
        about, train = self.about, self.config.train
        commits = {again["commit"] for again in about.get("resumed", [])} - {about["commit"]}
        return {
            "schema_version": 1,
            "preset": self.name,
            "seed": train.seed,
            "commit": about["commit"],
            "hardware": about["hardware"],
            "wall_seconds": round(time.perf_counter() - self.started, 1),
            "peak_memory_gib": round(peak_memory_gib(), 2),
            "peak_gpu_memory_gib": peak_gpu_memory_gib(self.accelerator.device),
            "command": about["command"],
            "halt_max_steps": train.halt.halt_max_steps,
            "resumed_commits": sorted(commits),
            **facts,
            "rows": self.rows,
        }

    def write_results(self, samples: list[dict[str, Any]], **facts: Any) -> str:
        """Write results.json, samples.json and report.html; print and return the table."""
        write_json(self.folder / "results.json", self.results(**facts))
        write_json(self.folder / "samples.json", samples)
        table = format_table(self.rows)
        report = write_report(self.folder)
        self.say(f"\n{table}\n")
        self.say(f"report: {report}")
        return table


def one_pass(
    reasoner: ReasonerConfig, train: TrainConfig, seconds: float
) -> tuple[ReasonerConfig, TrainConfig]:
    """Return a control: the same net, used once per example, trained for as many seconds."""
    halt = HaltConfig(halt_max_steps=1, halt_exploration_prob=0.0)
    return (
        dataclasses.replace(reasoner, L_cycles=1, H_cycles=1, gradient_cycles=1),
        dataclasses.replace(train, max_seconds=seconds, halt=halt),
    )


def facts_of(trainer: Trainer) -> dict[str, Any]:
    """Return what a row says of a training."""
    return {
        "trainable_parameters": sum(p.numel() for p in [*trainer.trainable, *trainer.tables]),
        "train_seconds": round(trainer.seconds, 1),
        "train_steps": trainer.step,
    }
