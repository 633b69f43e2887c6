"""Train a reasoner and its controls in a run, fill the table, write the results."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

import torch

from latent_reason.config import HaltConfig, ReasonerConfig, TrainConfig
from latent_reason.controls import AnswerLM
from latent_reason.evaluation import Evaluator, trace
from latent_reason.experiment import Run
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.report import format_table, write_report
from latent_reason.runs import environment, peak_memory_gib, write_json
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

    trainer = Trainer(run.accelerator, model, run.data["train"], train, folder, evaluate, run.say)
    finish(run, trainer, folder)
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
    finish(run, trainer, folder)
    counter = Evaluator(run.datasets["test"], run.accelerator).by_base(model)
    names = {"lora": "control: LoRA on the base", "pause": "control: pause slots"}
    run.add(names[kind], "test", None, counter, **facts_of(trainer))


def finish(run: Run, trainer: Trainer, folder: Path) -> None:
    """Resume if there is something to resume, train to the end, take the best weights."""
    if trainer.resume():
        run.say(f"resumed {folder} at step {trainer.step}")
    stopped = trainer.run()
    if stopped:
        run.say(f"stopped by signal {stopped} after step {trainer.step}; a checkpoint is saved")
        run.say(f"resume with: python recipes/train_latent_trm.py --resume {run.folder}")
        raise SystemExit(128 + stopped)
    trainer.use_best_weights()


def facts_of(trainer: Trainer) -> dict[str, Any]:
    """Return what a row says of a training."""
    size = sum(p.numel() for p in trainer.trainable)
    return {
        "trainable_parameters": size,
        "train_seconds": round(trainer.seconds, 1),
        "train_steps": trainer.step,
    }


def evaluate_reasoner(run: Run, model: LatentReasoner, trainer: Trainer) -> None:
    """Add the rows of the trained reasoner: by steps, by slots, on the harder splits."""
    config, facts = run.config, facts_of(trainer)
    trained = config.train.halt.max_steps_at(1.0)
    steps = sorted({*config.refinement_steps, trained})
    for step, counter in run.evaluator("test").by_refinement_steps(model, steps).items():
        run.add("latent reasoner", "test", step, counter, **facts)
    counter, mean_steps = run.evaluator("test").by_halting(model, max(steps))
    name = f"latent reasoner, halts itself at {mean_steps:.1f} on average"
    run.add(name, "test", max(steps), counter, mean_refinement_steps=mean_steps)
    slots = run.evaluator("test").by_slots(model, trained)
    for name in ("shuffled slots", "mean slots", "no slots"):
        run.add(f"latent reasoner, {name}", "test", trained, slots[name])
    for split in [*run.data][3:]:
        counter = run.evaluator(split).by_refinement_steps(model, [trained])[trained]
        run.add("latent reasoner", split, trained, counter)
    bare = AnswerLM(run.llm, "bare", run.num_slots, config.model.answer_delimiter)
    run.add(
        "bare base", "test", None, Evaluator(run.datasets["test"], run.accelerator).by_base(bare)
    )


def run_controls(run: Run, reasoner: Trainer) -> None:
    """Train the controls, each for as many seconds as the reasoner, on the same data."""
    seconds, size = reasoner.seconds, sum(p.numel() for p in reasoner.trainable)
    train = dataclasses.replace(
        run.config.train,
        max_seconds=seconds,
        halt=HaltConfig(halt_max_steps=1, halt_exploration_prob=0.0),
        through_base_from=0.0,
    )
    run.say(f"control: the same network in one pass, {seconds:.0f} s")
    once = dataclasses.replace(run.config.model.reasoner, L_cycles=1, H_cycles=1, gradient_cycles=1)
    model, trainer = train_reasoner(run, run.folder / "controls" / "one_pass", train, once)
    counter = run.evaluator("test").by_refinement_steps(model, [1])[1]
    run.add("control: same network, one pass", "test", 1, counter, **facts_of(trainer))
    for kind in ("lora", "pause"):
        run.say(f"control: {kind}, {seconds:.0f} s")
        train_control(run, kind, train, size)


def write_results(run: Run, model: LatentReasoner) -> None:
    """Print the table; write results.json, samples.json, report.html and the adapter."""
    trained = run.config.train.halt.max_steps_at(1.0)
    steps = sorted({trained, *(n for n in run.config.refinement_steps if n <= 2 * trained)})
    samples = trace(model, run.data["test"], NUM_SAMPLES, steps)
    if not run.accelerator.is_main_process:
        return
    about = environment()
    results = {
        "schema_version": 1,
        "preset": run.name,
        "seed": run.config.train.seed,
        "commit": about["commit"],
        "hardware": about["hardware"],
        "wall_seconds": round(time.perf_counter() - run.started, 1),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "command": about["command"],
        "base": run.llm.name,
        "base_prompts_read": run.llm.num_prompts,
        "base_unchanged": run.llm.sha256() == run.base_digest,
        "halt_max_steps": trained,
        "rows": run.rows,
    }
    write_json(run.folder / "results.json", results)
    write_json(run.folder / "samples.json", samples)
    table = format_table(run.rows)
    card = f"# Latent reasoner for {run.llm.name}\n\nPreset {run.name}, seed {results['seed']}, "
    card += f"commit {results['commit']}.\n\n```\n{table}\n```\n"
    model.save_pretrained(run.folder / "adapter", card=card)
    report = write_report(run.folder)
    run.say(f"\n{table}\n")
    run.say(f"report: {report}")
    run.say(f"adapter: {run.folder / 'adapter'}")
