"""Train a TRM or HRM stand-alone on grid puzzles: Sudoku, mazes, ARC-AGI, your own.

    accelerate launch recipes/train_puzzle.py                     # 4x4 Sudoku, CPU minutes
    accelerate launch recipes/train_puzzle.py sudoku-6x6 --controls
    accelerate launch recipes/train_puzzle.py sudoku-9x9 --train-data a.csv.gz --test-data b.csv.gz
    accelerate launch recipes/train_puzzle.py --resume runs/sudoku-6x6-20260101-120000

The run folder gets config.json, environment.json, metrics.jsonl, checkpoints/, results.json,
report.html and model/. Expected figures stand in recipes/README.md.
"""

from __future__ import annotations

import sys
from typing import Any

from latent_reason.config import HaltConfig, PuzzleModelConfig, ReasonerConfig, TrainConfig
from latent_reason.puzzle_experiment import PuzzleRun, PuzzleRunConfig
from latent_reason.run_frame import parse
from latent_reason.runs import run_script


def equivariant(
    puzzle: str, hidden_size: int, train: TrainConfig, symbols: bool = True, **changes: Any
) -> PuzzleRunConfig:
    """Return a recipe of small nets with the puzzle's symmetries built in, for CPUs."""
    reasoner = ReasonerConfig(
        hidden_size=hidden_size,
        num_heads=1,
        mixer="groups",
        positions="none",
        expansion=3.0,
        width_multiple=32,
        L_layers=1,
        L_cycles=1,
        H_cycles=1,
    )
    model = PuzzleModelConfig(reasoner=reasoner, symbol_states=symbols)
    return PuzzleRunConfig(puzzle=puzzle, model=model, train=train, augment=False, **changes)


def small(max_steps: int, batch_size: int = 64, **changes: Any) -> TrainConfig:
    """Return how the CPU presets train."""
    halt = HaltConfig(halt_max_steps=16, halt_exploration_prob=0.5, curriculum=(0.1, 0.4))
    return TrainConfig(
        max_steps=max_steps, batch_size=batch_size, learning_rate=2e-3, halt=halt, **changes
    )


PRESETS: dict[str, tuple[str, PuzzleRunConfig]] = {
    "sudoku-4x4": ("4x4 Sudoku, CPU minutes", equivariant("sudoku-4x4", 32, small(1000))),
    "sudoku-6x6": ("6x6 Sudoku, CPU minutes", equivariant("sudoku-6x6", 32, small(3000))),
    "sudoku-9x9": ("9x9 Sudoku, your files", equivariant("sudoku-9x9", 48, small(40000))),
    "maze-11x11": ("mazes", equivariant("maze-11x11", 64, small(3000), symbols=False)),
}


def main() -> int:
    """Run the recipe; returns the exit code."""
    name, config, resume = parse(sys.argv[1:], PRESETS, __doc__ or "")
    run = PuzzleRun(name, config, resume)
    with run.lock():
        run.open_folder()
        model, trainer = run.train_model(run.folder, config.model, config.train)
        run.say("evaluating")
        run.evaluate(model, trainer)
        if config.controls:
            run.run_control(trainer)
        run.write(model)
        run.accelerator.end_training()
    return 0


if __name__ == "__main__":
    run_script(main)
