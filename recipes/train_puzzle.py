r"""Train a TRM or HRM stand-alone on grid puzzles: Sudoku, mazes, ARC-AGI, your own.

    accelerate launch recipes/train_puzzle.py                     # 4x4 Sudoku, CPU minutes
    accelerate launch recipes/train_puzzle.py sudoku-6x6 --controls
    accelerate launch recipes/train_puzzle.py sudoku-hard --train-data a.csv.gz --test-data b.csv.gz
    accelerate launch recipes/train_puzzle.py arc-smoke --train-data \
        arc-agi_training_challenges.json --test-data arc-agi_evaluation_challenges.json
    accelerate launch recipes/train_puzzle.py --resume runs/sudoku-6x6-20260101-120000

The run folder gets config.json, environment.json, metrics.jsonl, checkpoints/, results.json,
report.html and model/; on ARC submission.json in Kaggle's form. Expected figures stand in
recipes/README.md.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from latent_reason.command_line import run_script
from latent_reason.config import HRMConfig, PuzzleModelConfig, ReasonerConfig
from latent_reason.puzzles.arc_experiment import ArcRun, ArcRunConfig
from latent_reason.puzzles.experiment import PuzzleRun, PuzzleRunConfig
from latent_reason.puzzles.solving import CHECKPOINTS
from latent_reason.run_options import parse
from latent_reason.train_config import HaltConfig, TrainConfig


def equivariant(
    puzzle: str, hidden_size: int, train: TrainConfig, symbols: bool = True, **changes: Any
) -> PuzzleRunConfig:
    """Return a small net with the puzzle's symmetries built in, for CPUs."""
    reasoner = ReasonerConfig(
        hidden_size=hidden_size,
        num_heads=1,
        mixer="groups",
        positions="none",
        expansion=3.0,
        width_multiple=32,
        L_layers=1,
        L_cycles=1,
        H_cycles=3,
    )
    model = PuzzleModelConfig(reasoner=reasoner, symbol_states=symbols)
    # What is built in need not be learnt from augmented examples.
    return PuzzleRunConfig(puzzle=puzzle, model=model, train=train, augment=False, **changes)


def small(max_steps: int, **changes: Any) -> TrainConfig:
    """Return how the CPU presets train."""
    halt = HaltConfig(halt_max_steps=16, halt_exploration_prob=0.5, curriculum=(0.1, 0.4))
    train = TrainConfig(
        max_steps=max_steps,
        halt=halt,
        cycles_curriculum=(0.0, 0.6),
        adamw_eps=1e-5,
        eval_every=max_steps // 4,
        save_every=max_steps // 4,
    )
    return dataclasses.replace(train, **changes)


def mazes(side: int, max_steps: int) -> PuzzleRunConfig:
    """Return square mazes with one route only.

    A limit of refinement steps that grows faster, or H cycles without gradient, loses the rule
    that is learnt: one more cell of a dead end is filled in each update.
    """
    halt = HaltConfig(halt_max_steps=16, halt_exploration_prob=0.5, curriculum=(0.05, 0.85))
    train = small(
        max_steps,
        batch_size=32,
        learning_rate=1e-3,
        cooldown=0.4,
        ema_decay=0.999,
        halt=halt,
        cycles_curriculum=None,
    )
    name = f"perfect-maze-{side}x{side}"
    config = equivariant(name, 32, train, symbols=False, num_train=5000)
    reasoner = dataclasses.replace(config.model.reasoner, L_cycles=2, H_cycles=1)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, reasoner=reasoner))


def sudoku_hard(max_steps: int) -> PuzzleRunConfig:
    """Return hard 9x9 Sudoku on CPU; compiling and bf16 (AMX) pay at this size.

    Five updates of z_L before one of z_H, all with gradient: what guesses are for is only learnt
    where the gradient sees what came of them.
    """
    halt = HaltConfig(halt_max_steps=16, halt_exploration_prob=0.5, curriculum=(0.01, 0.05))
    train = TrainConfig(
        max_steps=max_steps,
        batch_size=32,
        learning_rate=1.5e-3,
        cooldown=0.6,
        halt=halt,
        cycles_curriculum=(0.0, 0.3),
        adamw_eps=1e-5,
        ema_decay=0.999,
        compile=True,
        log_every=100,
        eval_every=2000,
        save_every=1000,
    )
    config = equivariant("sudoku-9x9", 64, train, hints=1.0, num_train=0, num_test=0)
    reasoner = dataclasses.replace(config.model.reasoner, L_cycles=5, H_cycles=1)
    model = dataclasses.replace(config.model, reasoner=reasoner)
    return dataclasses.replace(config, model=model, refinement_steps=(1, 4, 16, 64))


def sudoku_hard_more(max_steps: int) -> PuzzleRunConfig:
    """Return how the shipped 9x9 net was trained last, to go on from it or from another."""
    config = sudoku_hard(max_steps)
    halt = HaltConfig(halt_max_steps=32, halt_exploration_prob=0.5)
    train = dataclasses.replace(
        config.train, learning_rate=3e-4, cooldown=1.0, ema_decay=0.9995, halt=halt
    )
    return dataclasses.replace(
        config,
        train=train,
        hints=0.0,
        start_from=CHECKPOINTS / "sudoku-9x9",
        refinement_steps=(16, 32, 64),
    )


def published(
    batch_size: int, learning_rate: float, weight_decay: float, max_steps: int, ema_decay: float
) -> TrainConfig:
    """Return how the originals train: AdamATan2 at a constant rate after 2,000 steps."""
    return TrainConfig(
        max_steps=max_steps,
        batch_size=batch_size,
        optimizer="adam_atan2",
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        puzzle_learning_rate=learning_rate if weight_decay == 1.0 else 1e-2,
        puzzle_weight_decay=weight_decay,
        warmup_steps=2000,
        cooldown=0.0,
        grad_clip=None,
        ema_decay=ema_decay,
        halt=HaltConfig(halt_max_steps=16, halt_exploration_prob=0.1),
        eval_every=5000,
        save_every=5000,
    )


def published_trm(**reasoner: Any) -> PuzzleModelConfig:
    """Return the net of the TRM paper (arXiv 2510.04871)."""
    sizes: dict[str, Any] = {"hidden_size": 512, "num_heads": 8, "residual_init": "normal"}
    return PuzzleModelConfig(
        reasoner=ReasonerConfig(**(sizes | reasoner)),
        puzzle_emb_size=512,
        puzzle_emb_len=16,
        loss="stablemax",
    )


def published_hrm() -> PuzzleModelConfig:
    """Return the net of the HRM paper (arXiv 2506.21734)."""
    return PuzzleModelConfig(
        reasoner=HRMConfig(hidden_size=512, num_heads=8, residual_init="normal"),
        puzzle_emb_size=512,
        puzzle_emb_len=1,
        loss="stablemax",
        q_continue=True,
    )


def extreme(model: PuzzleModelConfig, train: TrainConfig) -> PuzzleRunConfig:
    """Return Sudoku-Extreme from the Hub: 1,000 training puzzles, the whole test set."""
    name = "sapientinc/sudoku-extreme"
    return PuzzleRunConfig(
        puzzle="sudoku-9x9",
        train_data=(name,),
        test_data=name,
        num_train=1000,
        num_val=1000,
        num_test=0,
        model=model,
        train=train,
        refinement_steps=(1, 4, 16, 64),
    )


def extreme_fast(max_steps: int, batch_size: int, num_chains: int = 1) -> PuzzleRunConfig:
    """Return the shortest ways to TRM-MLP's figure, and past it, on one GPU.

    Muon, normalised SwiGLU, a short schedule and chains of which the winner takes all as SIC
    (arXiv 2601.19085), on top of it cycles that grow as in CGAR (arXiv 2511.08653).
    """
    reasoner = ReasonerConfig(
        hidden_size=512,
        num_heads=8,
        mixer="mlp",
        positions="none",
        L_cycles=9,
        H_cycles=6,
        norm_swiglu=True,
    )
    train = TrainConfig(
        max_steps=max_steps,
        batch_size=batch_size,
        optimizer="muon",
        learning_rate=1e-4,
        weight_decay=1.0,
        warmup_steps=200,
        cooldown=1.0,
        cycles_curriculum=(0.0, 0.6),
        halt=HaltConfig(halt_max_steps=16, halt_exploration_prob=0.1),
        compile=True,
    )
    return extreme(PuzzleModelConfig(reasoner=reasoner, num_chains=num_chains), train)


def maze_hard() -> PuzzleRunConfig:
    """Return Maze-Hard from the Hub as the TRM paper trains it: 50,000 epochs, no symmetries."""
    name = "sapientinc/maze-30x30-hard-1k"
    config = extreme(
        published_trm(H_cycles=3, L_cycles=4), published(768, 1e-4, 1.0, 65_000, 0.999)
    )
    return dataclasses.replace(
        config,
        puzzle="maze-30x30",
        train_data=(name,),
        test_data=name,
        num_train=0,
        num_val=50,
        augment=False,
    )


def arc_as_published(max_steps: int) -> ArcRunConfig:
    """Return TRM on ARC-AGI; an epoch takes every training pair once, the paper has 100,000."""
    model = published_trm(H_cycles=3, L_cycles=4)
    train = published(768, 1e-4, 0.1, max_steps, 0.999)
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
        num_test=100,
        num_augmentations=16,
        num_votes=3,
        refinement_steps=(1, 2, 4),
    )


PRESETS: dict[str, tuple[str, PuzzleRunConfig]] = {
    "sudoku-4x4": (
        "4x4 Sudoku: a minute on a CPU core",
        equivariant("sudoku-4x4", 32, small(400), num_train=2000),
    ),
    "sudoku-6x6": (
        "6x6 Sudoku: minutes on a CPU core",
        equivariant("sudoku-6x6", 32, small(600), num_train=5000),
    ),
    "sudoku-hard": (
        "hard 9x9 Sudoku from your files: 96 minutes on two CPU cores",
        sudoku_hard(20_000),
    ),
    "sudoku-hard-more": (
        "trains the shipped 9x9 net, or --start-from another, on; not run under this name",
        sudoku_hard_more(19_000),
    ),
    "perfect-maze-11x11": ("11x11 mazes without loops: minutes on a CPU core", mazes(11, 4500)),
    "perfect-maze-15x15": ("15x15 mazes without loops; not run yet", mazes(15, 9000)),
    "sudoku-extreme-trm-mlp": (
        "TRM-MLP on Sudoku-Extreme as published; not run yet",
        extreme(
            published_trm(mixer="mlp", positions="none"), published(768, 1e-4, 1.0, 65_000, 0.999)
        ),
    ),
    "sudoku-extreme-trm-attention": (
        "TRM-attention on Sudoku-Extreme as published; not run yet",
        extreme(published_trm(), published(768, 1e-4, 1.0, 65_000, 0.999)),
    ),
    "sudoku-extreme-hrm": (
        "HRM on Sudoku-Extreme as published; not run yet",
        extreme(published_hrm(), published(384, 7e-5, 1.0, 52_000, 0.0)),
    ),
    "sudoku-extreme-fast": (
        "TRM-MLP on Sudoku-Extreme, one GPU, meant for under an hour; not run yet",
        extreme_fast(8000, 384),
    ),
    "sudoku-extreme-wta": (
        "the same with four chains, the winner takes all, hours on one GPU; not run yet",
        extreme_fast(36_000, 192, num_chains=4),
    ),
    "maze-hard": ("TRM on Maze-Hard as published; not run yet", maze_hard()),
    "arc-smoke": ("ARC, 100 tasks, from files to votes; learns next to nothing", arc_smoke()),
    "arc-agi-1": ("TRM on ARC-AGI-1 as published; not run yet", arc_as_published(519_000)),
    "arc-agi-2": ("TRM on ARC-AGI-2 as published; not run yet", arc_as_published(726_000)),
}


def main() -> int:
    """Run the recipe; returns the exit code."""
    name, config, resume = parse(sys.argv[1:], PRESETS, __doc__ or "")
    is_arc = isinstance(config, ArcRunConfig)
    run = ArcRun(name, config, resume) if is_arc else PuzzleRun(name, config, resume)
    with run.hold():
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
