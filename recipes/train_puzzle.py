"""Train a TRM or HRM stand-alone on grid puzzles: Sudoku, mazes, ARC-AGI, your own.

    accelerate launch recipes/train_puzzle.py                     # 4x4 Sudoku, CPU minutes
    accelerate launch recipes/train_puzzle.py sudoku-6x6 --controls
    accelerate launch recipes/train_puzzle.py sudoku-9x9 --train-data a.csv.gz --test-data b.csv.gz
    accelerate launch recipes/train_puzzle.py arc-smoke --train-data \
        arc-agi_training_challenges.json --test-data arc-agi_evaluation_challenges.json
    accelerate launch recipes/train_puzzle.py --resume runs/sudoku-6x6-20260101-120000

The run folder gets config.json, environment.json, metrics.jsonl, checkpoints/, results.json,
report.html and model/; on ARC submission.json in Kaggle's form. Expected figures stand in
recipes/README.md.
"""

from __future__ import annotations

import sys
from typing import Any

from latent_reason.arc_experiment import ArcRun, ArcRunConfig
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


def published_trm(max_steps: int, **reasoner: Any) -> tuple[PuzzleModelConfig, TrainConfig]:
    """Return net and training of the TRM paper (arXiv 2510.04871), on tasks with embeddings."""
    sizes: dict[str, Any] = {"hidden_size": 512, "num_heads": 8, "residual_init": "normal"}
    model = PuzzleModelConfig(
        reasoner=ReasonerConfig(**(sizes | reasoner)),
        puzzle_emb_size=512,
        puzzle_emb_len=16,
        loss="stablemax",
    )
    train = TrainConfig(
        max_steps=max_steps,
        batch_size=768,
        optimizer="adam_atan2",
        learning_rate=1e-4,
        weight_decay=0.1,
        puzzle_learning_rate=1e-2,
        puzzle_weight_decay=0.1,
        warmup_steps=2000,
        cooldown=0.0,
        grad_clip=None,
        ema_decay=0.999,
        halt=HaltConfig(halt_max_steps=16, halt_exploration_prob=0.1),
        eval_every=5000,
        save_every=5000,
    )
    return model, train


def arc_as_published(max_steps: int) -> ArcRunConfig:
    """Return TRM on ARC-AGI; an epoch takes every training pair once, the paper has 100,000."""
    model, train = published_trm(max_steps, H_cycles=3, L_cycles=4)
    return ArcRunConfig(model=model, train=train, refinement_steps=(1, 4, 16))


def arc_smoke() -> ArcRunConfig:
    """Return a net and a number of votes that one CPU core is through with in minutes."""
    reasoner = ReasonerConfig(
        hidden_size=32, num_heads=1, width_multiple=32, L_layers=1, L_cycles=2, H_cycles=2
    )
    model = PuzzleModelConfig(
        reasoner=reasoner, puzzle_emb_size=32, puzzle_emb_len=1, loss="stablemax"
    )
    train = TrainConfig(
        max_steps=200,
        batch_size=8,
        halt=HaltConfig(halt_max_steps=4),
        warmup_steps=20,
        log_every=20,
        eval_every=100,
        save_every=100,
    )
    return ArcRunConfig(
        model=model,
        train=train,
        num_val=16,
        num_augmentations=16,
        num_votes=3,
        refinement_steps=(1, 2, 4),
    )


PRESETS: dict[str, tuple[str, PuzzleRunConfig]] = {
    "sudoku-4x4": ("4x4 Sudoku, CPU minutes", equivariant("sudoku-4x4", 32, small(1000))),
    "sudoku-6x6": ("6x6 Sudoku, CPU minutes", equivariant("sudoku-6x6", 32, small(3000))),
    "sudoku-9x9": ("9x9 Sudoku, your files", equivariant("sudoku-9x9", 48, small(40000))),
    "maze-11x11": ("mazes", equivariant("maze-11x11", 64, small(3000), symbols=False)),
    "arc-smoke": ("ARC from files to votes in CPU minutes; learns next to nothing", arc_smoke()),
    "arc-agi-1": ("TRM on ARC-AGI-1 as published; not run yet", arc_as_published(519_000)),
    "arc-agi-2": ("TRM on ARC-AGI-2 as published; not run yet", arc_as_published(726_000)),
}


def main() -> int:
    """Run the recipe; returns the exit code."""
    name, config, resume = parse(sys.argv[1:], PRESETS, __doc__ or "")
    is_arc = isinstance(config, ArcRunConfig)
    run = ArcRun(name, config, resume) if is_arc else PuzzleRun(name, config, resume)
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
