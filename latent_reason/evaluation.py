"""Accuracy by refinement step and by what the slots hold; used by recipes and `eval/`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from latent_reason.controls import AnswerLM
from latent_reason.data.features import StateCache
from latent_reason.data.text import TextDataset
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.metrics import AccuracyCounter, local_batches
from latent_reason.prompts import PromptStates

Counters = dict[Any, AccuracyCounter]


class Evaluator:
    """Runs models over a dataset, each process over its share of the rows.

    Args:
        data: prompts and labels, with cached states or without.
        accelerator: gives device, rank and the sum over processes.
        bf16: compute under bf16 autocast.
        batch_size: rows per call.
    """

    def __init__(
        self,
        data: TextDataset | StateCache,
        accelerator: Accelerator,
        bf16: bool = False,
        batch_size: int = 128,
    ) -> None:
        self.data, self.accelerator = data, accelerator
        self.bf16, self.batch_size = bf16, batch_size

    def batches(self, everything: bool = False) -> Iterator[dict[str, Tensor]]:
        """Yield this process's share of the rows, or all of them."""
        return local_batches(self.data, self.accelerator, self.batch_size, everything)

    def total(self, counters: Counters) -> Counters:
        """Add the counts of all processes."""
        local = torch.tensor([c.counts() for c in counters.values()])
        summed = self.accelerator.reduce(local.to(self.accelerator.device), "sum").tolist()
        return {
            key: AccuracyCounter.from_counts(counts)
            for key, counts in zip(counters, summed, strict=True)
        }

    @torch.no_grad()
    def by_refinement_steps(self, model: LatentReasoner, steps: Sequence[int]) -> Counters:
        """Return a counter for each number of refinement steps; the base reads a prompt once."""
        counters: Counters = {step: AccuracyCounter() for step in sorted(steps)}
        for batch in self.batches():
            prompt = read_batch(model, batch)
            for step, slots, _ in refine(model, prompt, max(steps), self.bf16):
                if step in counters:
                    count(counters[step], model.write(prompt, slots), batch["labels"])
        return self.total(counters)

    @torch.no_grad()
    def by_halting(self, model: LatentReasoner, limit: int) -> tuple[AccuracyCounter, float]:
        """Stop every example when its halting head says so, at the latest after `limit`.

        Returns:
            The counter and the mean number of refinement steps used.
        """
        counter = AccuracyCounter()
        used = torch.zeros((), dtype=torch.long, device=self.accelerator.device)
        for batch in self.batches():
            prompt = read_batch(model, batch)
            final: Tensor | None = None
            running = torch.ones(len(batch["labels"]), dtype=torch.bool, device=used.device)
            for _, slots, q_halt_logits in refine(model, prompt, limit, self.bf16):
                final = (
                    slots if final is None else torch.where(running[:, None, None], slots, final)
                )
                used += running.sum()
                running &= q_halt_logits <= 0
                if not running.any():
                    break
            count(counter, model.write(prompt, final), batch["labels"])
        steps = self.accelerator.reduce(used, "sum").item()
        total = self.total({0: counter})[0]
        return total, steps / total.num_examples

    @torch.no_grad()
    def by_slots(self, model: LatentReasoner, refinement_steps: int) -> Counters:
        """Compare own slots with those of another example, their mean over the data, and none.

        Own slots that do no better than the others carry nothing about the question. Every
        process goes over all rows, since rows exchange their slots.
        """
        own: list[Tensor] = []
        for batch in self.batches(everything=True):
            prompt = read_batch(model, batch)
            own.append(list(refine(model, prompt, refinement_steps, self.bf16))[-1][1])
        everything = torch.cat(own)
        sizes = [len(slots) for slots in own]
        mean = everything.mean(dim=0, keepdim=True)
        variants: dict[str, list[Tensor | None]] = {
            "own slots": [*own],
            "shuffled slots": [*everything.roll(1, dims=0).split(sizes)],
            "mean slots": [mean.expand(size, -1, -1) for size in sizes],
            "no slots": [None] * len(own),
        }
        counters: Counters = {name: AccuracyCounter() for name in variants}
        for index, batch in enumerate(self.batches(everything=True)):
            prompt = read_batch(model, batch)
            for name, variant in variants.items():
                count(counters[name], model.write(prompt, variant[index]), batch["labels"])
        return counters

    @torch.no_grad()
    def by_base(self, model: AnswerLM) -> AccuracyCounter:
        """Count the answers of a model that generates token by token."""
        counter = AccuracyCounter()
        for batch in self.batches():
            tokens = model.generate(batch["input_ids"], batch["attention_mask"])
            count(counter, tokens, batch["labels"])
        return self.total({0: counter})[0]


def refine(
    model: LatentReasoner, prompt: PromptStates, num_steps: int, bf16: bool = False
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield refinement steps, slots (B, K, E) fp32 and q_halt_logits (B,) after each step."""
    thinking = model.think(prompt)
    for step in range(1, num_steps + 1):
        with torch.autocast(prompt.states.device.type, torch.bfloat16, enabled=bf16):
            slots, q_halt_logits = next(thinking)
        yield step, slots.float(), q_halt_logits


def read_batch(model: LatentReasoner, batch: dict[str, Tensor]) -> PromptStates:
    """Read prompts, or take cached states where the writer needs nothing else of the base."""
    if "states" in batch and model.config.writer == "head":
        return PromptStates(batch["states"], batch["attention_mask"], [])
    return model.llm.read(batch["input_ids"], batch["attention_mask"], model.config.read_layers)


def count(counter: AccuracyCounter, tokens: Tensor, labels: Tensor) -> None:
    """Add generated tokens (B, N), N up to K, compared with labels (B, K)."""
    missing = labels.shape[1] - tokens.shape[1]
    counter.update(torch.nn.functional.pad(tokens, (0, missing), value=-1), labels)


@torch.no_grad()
def trace(
    model: LatentReasoner, data: TextDataset | StateCache, num: int, steps: Sequence[int]
) -> list[dict[str, Any]]:
    """Return how the answers to the first `num` rows grow, for the report.

    Returns:
        Dictionaries with prompt, answer and steps: refinement_steps, text, correct, and q_halt,
        the probability that the halting head gives to "right".
    """
    rows = data.batch(torch.arange(min(num, len(data))))
    device = model.llm.embedding.device
    prompt = read_batch(model, {key: value.to(device) for key, value in rows.items()})
    samples: list[dict[str, Any]] = [
        {"prompt": example.prompt, "answer": example.answer, "steps": []}
        for example in data.examples[:num]
    ]
    for step, slots, q_halt_logits in refine(model, prompt, max(steps)):
        if step not in steps:
            continue
        texts = model.llm.decode(model.write(prompt, slots))
        sure = q_halt_logits.sigmoid().tolist()
        for sample, text, q_halt in zip(samples, texts, sure, strict=True):
            correct = text.split() == sample["answer"].split()
            sample["steps"].append(
                {"refinement_steps": step, "text": text, "correct": correct, "q_halt": q_halt}
            )
    return samples
