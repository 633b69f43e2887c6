"""Train a TRM in the latent space of a frozen causal LM and compare it with honest controls.

    accelerate launch recipes/train_latent_trm.py                    # default preset, CPU minutes
    accelerate launch recipes/train_latent_trm.py smoke              # under a minute
    accelerate launch recipes/train_latent_trm.py default --controls # also trains the controls
    accelerate launch recipes/train_latent_trm.py --base Qwen/Qwen3-0.6B
    accelerate launch recipes/train_latent_trm.py --train-data my.jsonl --test-data held_out.jsonl
    accelerate launch recipes/train_latent_trm.py --resume runs/default-20260101-120000
    torchrun --nproc_per_node 8 recipes/train_latent_trm.py          # 8 GPUs
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 recipes/train_latent_trm.py   # 2 CPUs

The run folder gets config.json, environment.json, metrics.jsonl, checkpoints/, results.json,
report.html and adapter/; read_seconds.json has the seconds in which the base read the training
prompts. Expected figures stand in README.md and recipes/README.md.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from typing import Any, Literal

from transformers.utils import logging as transformers_logging

from latent_reason.command_line import run_script
from latent_reason.comparison import evaluate_reasoner, run_controls, train_reasoner, write_results
from latent_reason.config import LatentReasonerConfig, ReasonerConfig
from latent_reason.data import TASKS
from latent_reason.experiment import Run, RunConfig
from latent_reason.run_options import parse
from latent_reason.train_config import HaltConfig, TrainConfig


def preset(
    task: str = "permutations",
    *,
    writer: Literal["head", "soft"] = "head",
    hidden_size: int = 96,
    max_steps: int = 2400,
    halt_max_steps: int = 16,
    **changes: Any,
) -> RunConfig:
    """Return the recipe that the presets share: one net evaluation per update, curriculum."""
    reasoner = ReasonerConfig(hidden_size=hidden_size, L_cycles=1, H_cycles=1)
    model = LatentReasonerConfig(
        reasoner=reasoner, writer=writer, num_slots=0, read_layers=("embedding", "last")
    )
    halt = HaltConfig(
        halt_max_steps=halt_max_steps, halt_exploration_prob=0.5, curriculum=(0.15, 0.65)
    )
    train = TrainConfig(max_steps=max_steps, learning_rate=1e-3, halt=halt)
    run = RunConfig(task=task, model=model, train=train)
    return dataclasses.replace(run, **changes)


def smoke() -> RunConfig:
    """Return a run of seconds that shows that everything works; it learns next to nothing."""
    run = preset(
        hidden_size=32,
        max_steps=60,
        halt_max_steps=4,
        num_train=256,
        num_val=64,
        num_test=64,
        refinement_steps=(1, 2, 4, 8),
    )
    often = dataclasses.replace(run.train, log_every=20, eval_every=30, save_every=30)
    return dataclasses.replace(run, train=often)


def hub() -> RunConfig:
    """Return a recipe for a 0.5-1B model from the Hub on one GPU; not run yet."""
    run = preset(hidden_size=256, base="Qwen/Qwen3-0.6B")
    return dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=256))


PRESETS: dict[str, tuple[str, RunConfig]] = {
    "default": ("S5 tracking: minutes on a CPU core", preset()),
    "soft": (
        "as default, but the base generates the answer from soft tokens",
        preset(writer="soft"),
    ),
    "qwen3-0.6b": ("as default on a Hub model; for one GPU, not run yet", hub()),
    "smoke": ("everything once in under a minute; learns nothing", smoke()),
} | {
    name.replace("_", "-"): (task.description, preset(name))
    for name, task in TASKS.items()
    if name != "permutations"
}


def main() -> int:
    """Run the recipe; returns the exit code."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    name, config, resume = parse(sys.argv[1:], PRESETS, __doc__ or "")
    run = Run(name, config, resume)
    with run.hold():
        run.prepare()
        model, trainer = train_reasoner(run, run.folder, config.train)
        run.say("evaluating")
        evaluate_reasoner(run, model, trainer)
        if config.controls:
            run_controls(run, trainer)
        write_results(run, model)
        if run.accelerator.is_main_process:
            shutil.rmtree(run.folder / "states", ignore_errors=True)
        run.accelerator.end_training()
    return 0


if __name__ == "__main__":
    run_script(main)
