"""Train a reasoner and its controls in a run, fill the table, write the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from latent_reason.config import ReasonerConfig
from latent_reason.controls import AnswerLM
from latent_reason.evaluation import Evaluator, trace
from latent_reason.experiment import UNLIKE, Run
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.run_frame import facts_of, one_pass
from latent_reason.train_config import TrainConfig
from latent_reason.training import Trainer

NUM_SAMPLES = 6
"""Test examples shown step by step in the report."""


def train_reasoner(
    run: Run, folder: Path, train: TrainConfig, reasoner: ReasonerConfig | None = None
) -> tuple[LatentReasoner, Trainer]:
    """Train a `LatentReasoner` in `folder`, with another reasoner than the run's if given."""
    torch.manual_seed(train.seed)
    config = dataclasses.replace(
        run.config.model,
        num_slots=run.num_slots,
        reasoner=reasoner or run.config.model.reasoner,
    )
    model = LatentReasoner(run.llm, config)
    val = run.evaluator("val")

    def evaluate() -> dict[str, float]:
        limit = train.halt.halt_max_steps
        counter = val.by_refinement_steps(model, [limit])[limit]
        return {"val/exact_accuracy": counter.exact_accuracy, "val/accuracy": counter.accuracy}

    data, options = run.data["train"], through_base(train)
    trainer = Trainer(run.accelerator, model, data, train, folder, evaluate, run.say, options)
    run.train(trainer, folder)
    return model, trainer


def train_control(run: Run, kind: Literal["lora", "pause"], train: TrainConfig, size: int) -> None:
    """Train LoRA or pause slots for the same time and add its row."""
    torch.manual_seed(train.seed)
    delimiter = run.config.model.answer_delimiter
    model = AnswerLM(run.llm, kind, run.num_slots, delimiter, min_parameters=size)
    val = Evaluator(run.datasets["val"], run.accelerator)

    def evaluate() -> dict[str, float]:
        counter = val.by_base(model)
        return {"val/exact_accuracy": counter.exact_accuracy, "val/accuracy": counter.accuracy}

    folder = run.folder / "controls" / kind
    trainer = Trainer(
        run.accelerator, model, run.datasets["train"], train, folder, evaluate, run.say
    )
    run.train(trainer, folder)
    counter = Evaluator(run.datasets["test"], run.accelerator).by_base(model)
    names = {"lora": "control: LoRA on the base", "pause": "control: pause slots"}
    run.add(names[kind], run.task, "test", None, counter, **facts_of(trainer))


def through_base(train: TrainConfig) -> Callable[[float, int], dict[str, Any]]:
    """Return the options of a training step: whether writer soft learns through the base yet."""
    return lambda progress, limit: {"through_base": progress >= train.through_base_from}


def evaluate_reasoner(run: Run, model: LatentReasoner, trainer: Trainer) -> None:
    """Add the rows of the trained reasoner: by steps, by slots, on what training is not like."""
    config, facts = run.config, facts_of(trainer)
    trained = config.train.halt.halt_max_steps
    steps = sorted({*config.refinement_steps, trained})
    for step, counter in run.evaluator("test").by_refinement_steps(model, steps).items():
        run.add("latent reasoner", run.task, "test", step, counter, **facts)
    counter, mean_steps = run.evaluator("test").by_halting(model, max(steps))
    name = "latent reasoner, halts itself"
    run.add(name, run.task, "test", max(steps), counter, mean_refinement_steps=mean_steps)
    slots = run.evaluator("test").by_slots(model, trained)
    for name in ("shuffled slots", "mean slots", "no slots"):
        run.add(f"latent reasoner, {name}", run.task, "test", trained, slots[name])
    for split in (split for split in UNLIKE if split in run.data):
        grown = model.with_num_slots(run.datasets[split].labels.shape[1])
        counters = run.evaluator(split).by_refinement_steps(grown, [trained, 2 * trained])
        for step, counter in counters.items():
            run.add("latent reasoner", run.task, split, step, counter)
    bare = AnswerLM(run.llm, "bare", run.num_slots, config.model.answer_delimiter)
    counter = Evaluator(run.datasets["test"], run.accelerator).by_base(bare)
    run.add("bare base", run.task, "test", None, counter)


def run_controls(run: Run, reasoner: Trainer) -> None:
    """Train the controls on the same data, each for as many seconds as the reasoner.

    LoRA and pause slots run the base in their training, so the time in which it read the training
    prompts for the reasoner is theirs too. Their steps are slow, so their
    warm-up is short.
    """
    seconds, size = reasoner.seconds, sum(p.numel() for p in reasoner.trainable)
    once, train = one_pass(run.config.model.reasoner, run.config.train, seconds)
    run.say(f"control: the same network in one pass, {seconds:.0f} s")
    model, trainer = train_reasoner(run, run.folder / "controls" / "one_pass", train, once)
    counter = run.evaluator("test").by_refinement_steps(model, [1])[1]
    run.add("control: same network, one pass", run.task, "test", 1, counter, **facts_of(trainer))
    train = dataclasses.replace(
        train,
        max_seconds=seconds + run.read_seconds,
        warmup_steps=min(20, train.warmup_steps),
    )
    for kind in ("lora", "pause"):
        run.say(f"control: {kind}, {train.max_seconds:.0f} s")
        train_control(run, kind, train, size)


def write_results(run: Run, model: LatentReasoner) -> None:
    """Print the table; write results.json, samples.json, report.html and the adapter."""
    trained = run.config.train.halt.halt_max_steps
    steps = sorted({trained, *(n for n in run.config.refinement_steps if n <= 2 * trained)})
    samples = trace(model, run.data["test"], NUM_SAMPLES, steps)
    if not run.accelerator.is_main_process:
        return
    table = run.write_results(
        samples,
        base=run.llm.name,
        base_prompts_read=run.llm.num_prompts,
        base_unchanged=run.llm.sha256() == run.base_digest,
    )
    card = f"# Latent reasoner for {run.llm.name}\n\n{run.origin}\n\n```\n{table}\n```\n"
    model.save_pretrained(run.folder / "adapter", card=card)
    run.say(f"adapter: {run.folder / 'adapter'}")
