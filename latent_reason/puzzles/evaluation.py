"""Exact evaluation of a `PuzzleModel` by refinement steps, by its halting head, by the rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_reason.data.puzzles import PuzzleDataset
from latent_reason.losses import exactly_right
from latent_reason.metrics import AccuracyCounter
from latent_reason.puzzles.model import PuzzleModel, PuzzleOutput

CONFIDENCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""At which a halting head may stop; `PuzzleEvaluator.choose_confidence` takes one of them."""
HALT_LOSS = 0.005
"""Share of the puzzles that halting early may cost on the validation split."""


@dataclass
class Sweep:
    """What one pass over a dataset tells.

    at: counters of the answers after so many refinement steps; valid: answers that are right by
    the rule of the puzzle after so many steps, where it has one (a maze may have several shortest
    paths). halted: counter of the answers at which the halting head stopped each example;
    mean_steps: refinement steps that this took.
    """

    at: dict[int, AccuracyCounter]
    valid: dict[int, int] = field(default_factory=dict)
    halted: AccuracyCounter = field(default_factory=AccuracyCounter)
    mean_steps: float = 0.0

    def facts(self, step: int) -> dict[str, Any]:
        """Return what a row says besides exact accuracy."""
        if step not in self.valid:
            return {}
        return {"valid_accuracy": self.valid[step] / self.at[step].num_examples}


def refine(
    model: PuzzleModel, batch: dict[str, Tensor], num_steps: int, bf16: bool = False
) -> Iterator[PuzzleOutput]:
    """Yield the output after each of `num_steps` refinement steps on a batch, without gradient."""
    inputs = batch["inputs"]
    carry = model.initial_carry(*inputs.shape)
    for _ in range(num_steps):
        with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
            output = model(carry, inputs, puzzle_identifiers=batch["puzzle_identifiers"])
        carry = output.carry
        yield output


class PuzzleEvaluator:
    """Evaluates models on one dataset; every process takes a share, the sums are exact.

    Args:
        data: grids and answers.
        accelerator: of the run.
        bf16: whether to compute in bf16.
        batch_size: grids at once.
    """

    def __init__(
        self,
        data: PuzzleDataset,
        accelerator: Accelerator,
        bf16: bool = False,
        batch_size: int = 256,
    ) -> None:
        self.data, self.accelerator = data, accelerator
        self.bf16, self.batch_size = bf16, batch_size

    def sweep(self, model: PuzzleModel, steps: Sequence[int]) -> Sweep:
        """Run max(steps) refinement steps and count the answers after each of `steps`."""
        model.eval()
        counters = {step: AccuracyCounter() for step in sorted(steps)}
        valid = dict.fromkeys(counters, 0)
        halted, used = AccuracyCounter(), 0
        for batch in self._batches():
            labels = batch["labels"]
            final = torch.zeros_like(labels)
            running = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
            for step, output in enumerate(refine(model, batch, max(steps), self.bf16), start=1):
                answers = output.logits.argmax(dim=-1)
                final = torch.where(running[:, None], answers, final)
                used += int(running.sum())
                running &= ~output.stop
                if step in counters:
                    counters[step].update(answers, labels)
                    valid[step] += self._num_valid(batch["inputs"], answers)
            halted.update(final, labels)
        return self._total(Sweep(counters, valid, halted), used)

    def choose_confidence(self, model: PuzzleModel, limit: int) -> float:
        """Return the lowest of CONFIDENCES at which halting costs next to nothing.

        That is at most HALT_LOSS of the puzzles against `limit` refinement steps for all; the
        highest if none is good enough. To be called with a validation split.
        """
        model.eval()
        bounds = torch.tensor([*CONFIDENCES, 1.0], device=self.accelerator.device).logit()
        right = torch.zeros(len(bounds), dtype=torch.long, device=bounds.device)
        for batch in self._batches():
            halted = final = torch.zeros_like(bounds[:, None] > batch["labels"][:, 0])
            for output in refine(model, batch, limit, self.bf16):
                final = torch.where(halted, final, exactly_right(output.logits, batch["labels"]))
                halted = halted | (output.q_halt_logits > bounds[:, None])
            right += final.sum(dim=1)
        *at, last = self.accelerator.reduce(right, "sum").tolist()
        least = last - HALT_LOSS * len(self.data)
        good = [c for c, n in zip(CONFIDENCES, at, strict=True) if n >= least]
        return good[0] if good else CONFIDENCES[-1]

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of this process on its device."""
        rows = torch.arange(len(self.data))
        rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        for part in rows.split(self.batch_size) if len(rows) else ():
            batch = self.data.batch(part)
            yield {key: value.to(self.accelerator.device) for key, value in batch.items()}

    def _num_valid(self, inputs: Tensor, answers: Tensor) -> int:
        valid = self.data.puzzle.valid(inputs, answers)
        return 0 if valid is None else int(valid.sum())

    def _total(self, sweep: Sweep, used: int) -> Sweep:
        """Add up the counts of all processes."""
        table = [c.counts() + [sweep.valid[s]] for s, c in sweep.at.items()]
        local = torch.tensor([*table, [*sweep.halted.counts(), used]])
        summed = self.accelerator.reduce(local.to(self.accelerator.device), "sum").tolist()
        at = dict(zip(sweep.at, summed, strict=False))
        halted = AccuracyCounter.from_counts(summed[-1][:-1])
        first = self.data.questions[:1], self.data.answers[:1]
        has_rule = self.data.puzzle.valid(*first) is not None
        return Sweep(
            {step: AccuracyCounter.from_counts(counts[:-1]) for step, counts in at.items()},
            {step: counts[-1] for step, counts in at.items()} if has_rule else {},
            halted,
            summed[-1][-1] / max(1, halted.num_examples),
        )


def trace(
    model: PuzzleModel, data: PuzzleDataset, num: int, steps: Sequence[int]
) -> list[dict[str, Any]]:
    """Return how the answers to the first `num` puzzles grow, for the report; see `report.py`."""
    puzzle = data.puzzle
    batch = data.batch(torch.arange(min(num, len(data))))
    device = model.lm_head.weight.device
    batch = {key: value.to(device) for key, value in batch.items()}
    answers = data.answers[: len(batch["inputs"])].tolist()
    samples: list[dict[str, Any]] = [
        {"prompt": puzzle.format(q), "answer": puzzle.format(a), "steps": []}
        for q, a in zip(batch["inputs"].tolist(), answers, strict=True)
    ]
    for step, output in enumerate(refine(model, batch, max(steps)), start=1):
        if step not in steps:
            continue
        tokens = output.logits.argmax(dim=-1).tolist()
        sure = output.q_halt_logits.sigmoid().tolist()
        for sample, row, q_halt in zip(samples, tokens, sure, strict=True):
            text = puzzle.format(row)
            correct = text == sample["answer"]
            sample["steps"].append(
                {"refinement_steps": step, "text": text, "correct": correct, "q_halt": q_halt}
            )
    return samples
