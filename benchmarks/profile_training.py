"""Where the time of a preset's training goes: shares measured in one run.

    python benchmarks/profile_training.py                 # default preset, 100 steps
    python benchmarks/profile_training.py --num-steps 300 --preset sorting

Prints milliseconds per step and shares of the whole preset, extrapolated from the measured steps:
base (reading every prompt once), data (gathering cached states), reader and reasoner, writer
(read-out and loss), backward, optimizer, evaluation on the validation and test splits.
"""

from __future__ import annotations

import argparse
import dataclasses
import runpy
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latent_reason.comparison import evaluate_reasoner
from latent_reason.experiment import Run
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.training import Trainer

RECIPE = Path(__file__).parents[1] / "recipes" / "train_latent_trm.py"
PRESETS = runpy.run_path(str(RECIPE))["PRESETS"]


class Clock:
    """Adds up the seconds that wrapped functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count calls of `owner.name` under `part`."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds[part] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)


def main() -> None:
    """Train a few steps of a preset and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="default", choices=PRESETS)
    parser.add_argument("--num-steps", type=int, default=100)
    options = parser.parse_args()
    config = PRESETS[options.preset][1]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, output_dir=Path(folder) / "run")
        run = Run(options.preset, config, False)
        clock.wrap(run, "prepare", "base")
        run.folder.mkdir(parents=True)
        run.prepare()
        base_s = clock.seconds.pop("base")

        train = config.train
        steps = dataclasses.replace(train, max_steps=options.num_steps, eval_every=10**9)
        model = LatentReasoner(run.llm, dataclasses.replace(config.model, num_slots=run.num_slots))
        nothing = {"val/exact_accuracy": 0.0, "val/accuracy": 0.0}
        trainer = Trainer(
            run.accelerator, model, run.data["train"], steps, run.folder, lambda: nothing, str
        )
        clock.wrap(run.data["train"], "batch", "data")
        clock.wrap(model.core.reader, "forward", "reader")
        clock.wrap(model.core.reasoner, "forward", "reasoner")
        clock.wrap(model, "read_out", "writer")
        clock.wrap(model.core.writer, "forward", "writer")
        clock.wrap(run.accelerator, "backward", "backward")
        clock.wrap(trainer, "_update", "optimizer")
        trainer.run()
        parts = dict(clock.seconds)
        parts["other"] = trainer.seconds - sum(parts.values())
        scale = train.max_steps / options.num_steps

        start = time.perf_counter()
        run.evaluator("val").by_refinement_steps(model, [train.halt.halt_max_steps])
        val_s = (time.perf_counter() - start) * train.max_steps / train.eval_every
        start = time.perf_counter()
        evaluate_reasoner(run, model, trainer)
        test_s = time.perf_counter() - start

    rows = {"base, all prompts once": base_s}
    rows |= {f"training: {name}": seconds * scale for name, seconds in parts.items()}
    rows |= {"evaluation: validation": val_s, "evaluation: test": test_s}
    total = sum(rows.values())
    print(f"preset {options.preset}, {torch.get_num_threads()} threads, {train.max_steps} steps")
    for name, seconds in rows.items():
        print(f"{name:28s} {seconds:8.1f} s {100 * seconds / total:5.1f} %")
    print(f"{'total':28s} {total:8.1f} s; base read {run.llm.num_prompts} prompts")


if __name__ == "__main__":
    main()
