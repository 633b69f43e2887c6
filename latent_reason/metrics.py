"""Exact counting of right answers, their confidence interval, and the log `metrics.jsonl`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_reason.files import replacing
from latent_reason.losses import IGNORE_INDEX
from latent_reason.results import read_metrics

Z_95 = 1.959963984540054  # standard normal quantile of 0.975


def wilson_interval(correct: float, num: int) -> tuple[float, float]:
    """95 % Wilson score interval of a share, as fractions between 0 and 1.

    Args:
        correct: Number of successes, 0 to `num`; a sum of partial ones gives an interval that is
            rather too wide, since their variance is smaller.
        num: Number of independent trials, at least 1.

    Raises:
        ValueError: `num` or `correct` is out of range.
    """
    if num < 1 or not 0 <= correct <= num:
        raise ValueError(f"wilson_interval: got {correct} of {num}, expected 0 <= correct <= num")
    share = correct / num
    scale = 1 + Z_95**2 / num
    center = share + Z_95**2 / (2 * num)
    margin = Z_95 * math.sqrt(share * (1 - share) / num + (Z_95 / (2 * num)) ** 2)
    low = 0.0 if correct == 0 else (center - margin) / scale
    high = 1.0 if correct == num else (center + margin) / scale
    return low, high


class Rows(Protocol):
    """What can be evaluated."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Gather rows (B,)."""
        ...


@dataclass
class AccuracyCounter:
    """Integer sums over examples and cells; adding the sums of several ranks is exact.

    Cells with label -100 are ignored, and so is an example without any other cell: padding a
    batch changes nothing.

    Attributes:
        num_examples: Examples with at least one labelled cell.
        num_exact: Examples with every labelled cell right.
        num_cells: Labelled cells.
        num_correct_cells: Labelled cells that are right.
    """

    num_examples: int = 0
    num_exact: int = 0
    num_cells: int = 0
    num_correct_cells: int = 0

    @classmethod
    def from_counts(cls, counts: Sequence[int]) -> AccuracyCounter:
        """Rebuild a counter from `counts()`, for example from their sum over ranks."""
        return cls(*counts)

    def counts(self) -> list[int]:
        """The four sums, in the order of the attributes."""
        return list(astuple(self))

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add one batch.

        Args:
            predictions: (B, K) integers.
            labels: (B, K) integers on the same device, -100 where nothing is asked.

        Raises:
            ValueError: The shapes differ or are not (B, K).
        """
        if labels.dim() != 2 or predictions.shape != labels.shape:
            raise ValueError(
                f"accuracy: got predictions {tuple(predictions.shape)} and labels "
                f"{tuple(labels.shape)}, expected the same shape (B, K)"
            )
        labelled = labels != IGNORE_INDEX
        correct = labelled & (predictions == labels)
        counted = labelled.any(dim=1)
        exact = counted & (correct == labelled).all(dim=1)
        # One tensor, so that a GPU is waited for once.
        sums = torch.stack([mask.sum() for mask in (counted, exact, labelled, correct)]).tolist()
        self.num_examples += sums[0]
        self.num_exact += sums[1]
        self.num_cells += sums[2]
        self.num_correct_cells += sums[3]

    @property
    def exact_accuracy(self) -> float:
        """Share of examples with every labelled cell right; ValueError before any was counted."""
        self._require_examples()
        return self.num_exact / self.num_examples

    @property
    def accuracy(self) -> float:
        """Share of labelled cells that are right; ValueError before any was counted."""
        self._require_examples()
        return self.num_correct_cells / self.num_cells

    @property
    def ci95(self) -> tuple[float, float]:
        """95 % Wilson interval of `exact_accuracy`; ValueError before any example was counted."""
        self._require_examples()
        return wilson_interval(self.num_exact, self.num_examples)

    def as_dict(self) -> dict[str, Any]:
        """The keys of a row of `results.json`: n, exact_accuracy, ci95, accuracy.

        Raises:
            ValueError: No labelled example was counted.
        """
        return {
            "n": self.num_examples,
            "exact_accuracy": self.exact_accuracy,
            "ci95": list(self.ci95),
            "accuracy": self.accuracy,
        }

    def _require_examples(self) -> None:
        if self.num_examples == 0:
            raise ValueError("accuracy of no examples: count at least one with a labelled cell")


def local_batches(
    data: Rows, accelerator: Accelerator, batch_size: int, everything: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of the rows of this process, or of all rows, on its device.

    Together the processes have every row once.
    """
    rows = torch.arange(len(data))
    if not everything:
        rows = rows[accelerator.process_index :: accelerator.num_processes]
    for part in rows.split(batch_size) if len(rows) else ():
        yield {key: value.to(accelerator.device) for key, value in data.batch(part).items()}


class MetricsLog:
    """Append-only writer of `metrics.jsonl`: one JSON object per line, flushed line by line.

    Only values that a resumed run reproduces belong here, and a step's lines must be written
    before its checkpoint: then the file of a resumed run equals that of an uninterrupted one,
    byte for byte. A last line torn by a kill is dropped on opening.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        """Open the file for appending.

        Args:
            path: The file; it and its folder are made if missing.
            resume_step: Step of the checkpoint resumed from, or 0 to start over: lines of later
                steps are dropped.

        Raises:
            DataError: A line of the existing file is damaged; the message names file and line.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            kept = [line for line, record in read_metrics(path) if record["step"] <= resume_step]
            with replacing(path) as temporary, open(temporary, "wb") as file:
                file.writelines(kept)
                file.flush()
                os.fsync(file.fileno())
        self._file = open(path, "ab")

    def __enter__(self) -> MetricsLog:
        """Return the open log."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the file."""
        self.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line with the keys in the order given.

        Args:
            record: JSON values; `step` (int) is required.

        Raises:
            ValueError: `step` is missing or not an int, or a value is NaN or infinite.
        """
        step = record.get("step")
        if type(step) is not int:
            raise ValueError(f"metrics record: got step {step!r}, expected an int")
        try:
            line = json.dumps(dict(record), allow_nan=False)
        except ValueError as error:
            raise ValueError(f"metrics of step {step} are not finite: {dict(record)}") from error
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        self._file.close()
