"""How many times faster symmetries are drawn on the fly than a model trains on them.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py

Both rates come from one run, with the preset's own model, batch size and puzzles. A ratio of 20
means that drawing takes 5 % of the time of a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import runpy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from latent_reason.puzzles.experiment import PuzzleRun

RECIPE = Path(__file__).parents[1] / "recipes" / "train_puzzle.py"
PRESETS = runpy.run_path(str(RECIPE))["PRESETS"]
NAMES = ("sudoku-4x4", "sudoku-6x6", "sudoku-hard", "perfect-maze-11x11")


def rate(batch_size: int, num_calls: int, call: Callable[[int], object]) -> float:
    """Return examples per second of `call`, after one call that is not timed."""
    call(0)
    start = time.perf_counter()
    for index in range(1, num_calls + 1):
        call(index)
    return num_calls * batch_size / (time.perf_counter() - start)


def main() -> None:
    """Print a line for each puzzle: both rates and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--num-steps", type=int, default=20, help="training steps to time")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; examples per second")
    for name in options.preset:
        with tempfile.TemporaryDirectory() as folder:
            config = dataclasses.replace(
                PRESETS[name][1],
                train_data=(),
                test_data=None,
                num_train=256,
                num_val=1,
                num_test=1,
                augment=True,
                output_dir=Path(folder),
            )
            run = PuzzleRun(name, config, resume=False)
            trainer = run.make_trainer(Path(folder), config.model, config.train)[1]
            size, data = config.train.batch_size, run.data["train"]
            drawn = rate(size, 200, lambda i, d=data, n=size: d.at(torch.arange(n) + i * n, 0))
            trained = rate(size, options.num_steps, lambda _, t=trainer: t.train_step())
            print(
                f"{name}: drawn {drawn:,.0f}, trained {trained:,.0f}, {drawn / trained:.0f} times"
            )


if __name__ == "__main__":
    main()
