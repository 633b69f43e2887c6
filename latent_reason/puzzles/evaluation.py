"""Exact evaluation of a `PuzzleModel` by refinement steps, by its halting head, by the rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_reason.data.puzzles import PAD, PuzzleDataset
from latent_reason.losses import exactly_right
from latent_reason.metrics import AccuracyCounter, local_batches
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
    paths). halted: counter of the answers at which the halting head stopped each example, the last
    ones where it did not; valid_halted: how many of these are right by the rule, None without one;
    halted_at: examples that it stopped, by refinement steps; mean_steps: what all of them took.
    """

    at: dict[int, AccuracyCounter]
    valid: dict[int, int]
    halted: AccuracyCounter
    valid_halted: int | None
    halted_at: dict[int, int]
    mean_steps: float

    def rows(self, system: str, **about: Any) -> list[dict[str, Any]]:
        """Return rows of results.json: one by steps each, and one for what the model decides.

        Args:
            system: name in the table.
            about: what all of them say besides.
        """

        def row(
            name: str, step: int, counter: AccuracyCounter, valid: int | None
        ) -> dict[str, Any]:
            told = {"system": name, **about, "refinement_steps": step} | counter.as_dict()
            share = {} if valid is None else {"valid_accuracy": valid / counter.num_examples}
            return told | share

        halting = row(f"{system}, halts itself", max(self.at), self.halted, self.valid_halted) | {
            "mean_refinement_steps": self.mean_steps,
            "halted_at": [[step, num] for step, num in self.halted_at.items()],
        }
        rows = [row(system, step, count, self.valid.get(step)) for step, count in self.at.items()]
        return [*rows, halting]


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
        halted, valid_halted = AccuracyCounter(), 0
        halted_at = torch.zeros(max(steps) + 1, dtype=torch.long)  # at 0: never
        for batch in local_batches(self.data, self.accelerator, self.batch_size):
            labels = batch["labels"]
            final, stopped = torch.zeros_like(labels), torch.zeros_like(labels[:, 0])
            for step, output in enumerate(refine(model, batch, max(steps), self.bf16), start=1):
                answers = output.logits.argmax(dim=-1)
                running = stopped == 0
                final = torch.where(running[:, None], answers, final)
                stopped = torch.where(running & output.stop, step, stopped)
                if step in counters:
                    counters[step].update(answers, labels)
                    valid[step] += self._num_valid(batch["inputs"], answers)
            halted.update(final, labels)
            valid_halted += self._num_valid(batch["inputs"], final)
            halted_at += torch.bincount(stopped.cpu(), minlength=len(halted_at))
        table = [counter.counts() + [valid[step]] for step, counter in counters.items()]
        return self._total([*counters], [*table, halted.counts() + [valid_halted]], halted_at)

    def choose_confidence(self, model: PuzzleModel, limit: int) -> float:
        """Return the lowest of CONFIDENCES at which halting costs next to nothing.

        That is at most HALT_LOSS of the puzzles against the best of the others and of `limit`
        refinement steps for all, which may lose an answer again; the highest if none is good
        enough. To be called with a validation split.
        """
        model.eval()
        bounds = torch.tensor([*CONFIDENCES, 1.0], device=self.accelerator.device).logit()
        right = torch.zeros(len(bounds), dtype=torch.long, device=bounds.device)
        for batch in local_batches(self.data, self.accelerator, self.batch_size):
            halted = final = torch.zeros_like(bounds[:, None] > batch["labels"][:, 0])
            for output in refine(model, batch, limit, self.bf16):
                final = torch.where(halted, final, exactly_right(output.logits, batch["labels"]))
                halted = halted | (output.q_halt_logits > bounds[:, None])
            right += final.sum(dim=1)
        *at, last = self.accelerator.reduce(right, "sum").tolist()
        least = max(last, *at) - HALT_LOSS * len(self.data)
        good = [c for c, n in zip(CONFIDENCES, at, strict=True) if n >= least]
        return good[0] if good else CONFIDENCES[-1]

    def _num_valid(self, inputs: Tensor, answers: Tensor) -> int:
        valid = self.data.puzzle.valid(inputs, answers)
        return 0 if valid is None else int(valid.sum())

    def _total(self, steps: list[int], table: list[list[int]], halted_at: Tensor) -> Sweep:
        """Add up the counts of all processes: a row of `table` by steps each, one when halted."""
        device = self.accelerator.device
        summed = self.accelerator.reduce(torch.tensor(table).to(device), "sum").tolist()
        never, *ended = self.accelerator.reduce(halted_at.to(device), "sum").tolist()
        *at, halted = [AccuracyCounter.from_counts(counts[:-1]) for counts in summed]
        *valid, valid_halted = [counts[-1] for counts in summed]
        first = self.data.questions[:1], self.data.answers[:1]
        has_rule = self.data.puzzle.valid(*first) is not None
        used = sum(step * num for step, num in enumerate(ended, start=1)) + len(ended) * never
        return Sweep(
            at=dict(zip(steps, at, strict=True)),
            valid=dict(zip(steps, valid, strict=True)) if has_rule else {},
            halted=halted,
            valid_halted=valid_halted if has_rule else None,
            halted_at={step: num for step, num in enumerate(ended, start=1) if num},
            mean_steps=used / max(1, halted.num_examples),
        )


def trace(
    model: PuzzleModel, data: PuzzleDataset, num: int, steps: Sequence[int]
) -> list[dict[str, Any]]:
    """Return how the answers to the first `num` puzzles grow, for the report; see `report.py`."""
    puzzle = data.puzzle
    batch = data.batch(torch.arange(min(num, len(data))))
    device = model.lm_head.weight.device
    batch = {key: value.to(device) for key, value in batch.items()}
    answers = data.answers[: len(batch["inputs"])]
    samples: list[dict[str, Any]] = [
        {"prompt": puzzle.format(q), "answer": puzzle.format(a), "steps": []}
        for q, a in zip(batch["inputs"].tolist(), answers.tolist(), strict=True)
    ]
    for step, output in enumerate(refine(model, batch, max(steps)), start=1):
        if step not in steps:
            continue
        # What is not asked is told by no answer, so that it counts in neither.
        tokens = output.logits.argmax(dim=-1).cpu().masked_fill(answers.cpu() == PAD, PAD).tolist()
        sure = output.q_halt_logits.sigmoid().tolist()
        for sample, row, q_halt in zip(samples, tokens, sure, strict=True):
            text = puzzle.format(row)
            correct = text == sample["answer"]
            sample["steps"].append(
                {"refinement_steps": step, "text": text, "correct": correct, "q_halt": q_halt}
            )
    return samples
