"""What a training tells: means since the last line, to metrics.jsonl, trackers and the screen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_reason.losses import IGNORE_INDEX
from latent_reason.metrics import MetricsLog
from latent_reason.train_config import TrainConfig

SUMS = ("train/loss", "train/exact_accuracy", "train/refinement_steps", "right", "labelled")


def sums_device(accelerator: Accelerator) -> torch.device:
    """Return where fp64 sums live: on the accelerator, or on the CPU for MPS, which has no fp64."""
    device = accelerator.device
    return torch.device("cpu") if device.type == "mps" else device


def gather_numbers(accelerator: Accelerator, *values: float) -> Tensor:
    """Return (processes, N) fp64 on the CPU: these N numbers of every process."""
    row = torch.tensor([values], dtype=torch.float64)
    if accelerator.num_processes == 1:
        return row
    return accelerator.gather(row.to(sums_device(accelerator))).cpu()


class Progress:
    """Sums up steps and writes lines; every process adds and gathers, the main one writes.

    Args:
        accelerator: of the run; its trackers get every line too, but none of a control, which
            trains in a folder of its own.
        config: of the training.
        run_dir: gets metrics.jsonl and perf.jsonl (timing, which no resumed run reproduces).
        report: called on the main process with one line of progress.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainConfig,
        run_dir: Path,
        report: Callable[[str], None],
    ) -> None:
        self.accelerator, self.config = accelerator, config
        self.run_dir, self.report = run_dir, report
        self._file: MetricsLog | None = None
        self._tracked = Path(accelerator.project_dir or run_dir) == run_dir
        self._settings: dict[str, float] = {}
        self._clear()

    def _clear(self) -> None:
        device = sums_device(self.accelerator)
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self._num = 0

    @contextmanager
    def open(self, step: int) -> Iterator[None]:
        """Hold metrics.jsonl open inside a `with` block; lines after `step` are dropped.

        At step 0 all of them are, also that of a validation before the first step.
        """
        if not self.accelerator.is_main_process:
            yield
            return
        with MetricsLog(self.run_dir / "metrics.jsonl", step or -1) as self._file:
            yield

    def add(self, output: Any, labels: Tensor, learning_rate: float, limit: int) -> None:
        """Add a step: its batch means and its counts of tokens; labels are (B, S) int64.

        `limit`, the most refinement steps, and the rate are told as the last step had them.
        """
        self._settings = {
            "train/learning_rate": learning_rate,
            "train/max_refinement_steps": limit,
        }
        labelled, num_processes = labels != IGNORE_INDEX, self.accelerator.num_processes
        predicted = output.logits.detach()[:, : labels.shape[1]].argmax(dim=-1)
        values = (
            output.loss.detach(),
            output.correct.float().mean(),
            output.carry.refinement_steps.float().mean(),
            ((predicted == labels) & labelled).sum() * num_processes,
            labelled.sum() * num_processes,
        )
        self._sums += torch.stack([value.to(self._sums.device).double() for value in values])
        self._num += 1

    def write_means(self, step: int, seconds: float, progress: float) -> None:
        """Write the means since the last time.

        Args:
            step: optimizer steps so far.
            seconds: of training so far.
            progress: share of training done.
        """
        means = gather_numbers(self.accelerator, *self._sums.tolist()).mean(dim=0) / self._num
        row = dict(zip(SUMS, means.tolist(), strict=True))
        row["train/accuracy"] = row.pop("right") / row.pop("labelled")
        self._clear()
        row |= self._settings
        if not self._write(step, row):
            return
        rate = step * self.config.batch_size / seconds
        perf = {"train/seconds": round(seconds, 2), "perf/examples_per_s": round(rate, 1)}
        with open(self.run_dir / "perf.jsonl", "a") as file:
            file.write(json.dumps({"step": step} | perf) + "\n")
        left = seconds * (1 / max(progress, 1e-9) - 1)
        total = "" if self.config.max_seconds else f"/{self.config.max_steps}"
        self.report(
            f"step {step}{total} | loss {row['train/loss']:.3f} | "
            f"tokens {100 * row['train/accuracy']:.1f} % | "
            f"exact {100 * row['train/exact_accuracy']:.1f} % | "
            f"up to {row['train/max_refinement_steps']} refinement steps | "
            f"{rate:.0f} examples/s | ETA {int(left) // 60}:{int(left) % 60:02d}"
        )

    def write_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation, which are the same on every process."""
        if self._write(step, metrics):
            text = " | ".join(
                f"{k} {100 * v:.1f} %" if k.endswith("accuracy") else f"{k} {v:.3f}"
                for k, v in metrics.items()
            )
            self.report(f"step {step} | {text}")

    def _write(self, step: int, row: dict[str, float]) -> bool:
        """Write a line; returns whether this process writes at all."""
        if self._file is None:
            return False
        self._file.write({"step": step, **row})
        if self._tracked:
            self.accelerator.log(row, step=step)
        return True

    def state(self) -> dict[str, Any]:
        """Return, on every process, what a checkpoint must hold: the sums of all processes."""
        sums = gather_numbers(self.accelerator, *self._sums.tolist()).tolist()
        return {"sums": sums, "num_sums": self._num}

    def load(self, state: dict[str, Any]) -> None:
        """Undo `state`; if it is of another number of processes, each takes their mean."""
        sums = torch.tensor(state["sums"], dtype=torch.float64)
        same = len(sums) == self.accelerator.num_processes
        own = sums[self.accelerator.process_index] if same else sums.mean(dim=0)
        self._sums = own.to(sums_device(self.accelerator))
        self._num = state["num_sums"]
