"""Tiny trainings for the tests of training, evaluation, recipes: seconds on one core, in fp32."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file, save_file
from torch import Tensor

from latent_reason.checkpoint import Checkpoint, latest_checkpoint
from latent_reason.config import LatentReasonerConfig, PuzzleModelConfig, ReasonerConfig
from latent_reason.data import Example
from latent_reason.data.puzzles import PuzzleDataset
from latent_reason.data.sudoku import Sudoku
from latent_reason.data.text import TextDataset
from latent_reason.evaluation import Evaluator
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.llm import FrozenLLM
from latent_reason.puzzles.evaluation import PuzzleEvaluator
from latent_reason.puzzles.model import PuzzleModel
from latent_reason.train_config import HaltConfig, TrainConfig
from latent_reason.training import Trainer

NUM_SLOTS = 6
REASONER = ReasonerConfig(hidden_size=16, num_heads=2, L_layers=1, L_cycles=1, H_cycles=1)
MODEL = LatentReasonerConfig(reasoner=REASONER, num_slots=NUM_SLOTS, read_layers=("embedding", 1))
TRAIN = TrainConfig(
    max_steps=24,
    batch_size=4,
    learning_rate=1e-2,
    warmup_steps=4,
    precision="fp32",
    log_every=4,
    eval_every=8,
    save_every=8,
    halt=HaltConfig(halt_max_steps=4, halt_exploration_prob=0.5, curriculum=(0.1, 0.6)),
)


def make_examples(num: int, start: int = 0) -> list[Example]:
    """Two digits to their sum and the last digit of their product: 4 to 6 slots."""
    pairs = [divmod(7 * n % 100, 10) for n in range(start, start + num)]
    return [Example(f"add {a} {b}", f"{a + b} {a * b % 10}") for a, b in pairs]


def until_end(tokens: Tensor, end: int = 0) -> list[int]:
    """Return an answer up to and with its end."""
    row = tokens.tolist()
    return row[: row.index(end) + 1] if end in row else row


def make_data(llm: FrozenLLM, num: int, start: int = 0) -> TextDataset:
    return TextDataset.build(make_examples(num, start), llm.tokenizer, NUM_SLOTS)


def make_trainer(
    llm: FrozenLLM,
    folder: Path,
    data: Any = None,
    train: TrainConfig = TRAIN,
    model_config: LatentReasonerConfig = MODEL,
    **changes: Any,
) -> Trainer:
    """Return a trainer of a tiny reasoner whose initial weights depend on the seed alone.

    Its halting head says stop from the start, so that the minimum of exploration, other for each
    slot, decides who halts.
    """
    torch.manual_seed(train.seed)
    accelerator = Accelerator(mixed_precision="no")
    model = LatentReasoner(llm, model_config)
    torch.nn.init.constant_(model.core.q_head.bias, 5.0)
    config = replace(train, **changes)
    val = Evaluator(make_data(llm, 5, start=50), accelerator)

    def evaluate() -> dict[str, float]:
        counter = val.by_refinement_steps(model, [2])[2]
        return {"val/exact_accuracy": counter.exact_accuracy, "val/accuracy": counter.accuracy}

    data = make_data(llm, 22) if data is None else data
    return Trainer(accelerator, model, data, config, folder, evaluate, report=lambda line: None)


PUZZLE = Sudoku(2, 2)
NUM_PUZZLES = 22
PUZZLE_MODEL = PuzzleModelConfig(
    reasoner=ReasonerConfig(
        hidden_size=16, num_heads=2, width_multiple=16, L_layers=1, L_cycles=1, H_cycles=2
    ),
    vocab_size=PUZZLE.vocab_size,
    num_cells=PUZZLE.num_cells,
    num_puzzles=NUM_PUZZLES,
    puzzle_emb_size=20,
    puzzle_emb_len=2,
)


SIZES: dict[str, Any] = {"hidden_size": 16, "num_heads": 2, "L_cycles": 2, "H_cycles": 1}
SIZES |= {"L_layers": 1, "width_multiple": 16}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "attention": ({"positions": "learned"}, {"puzzle_emb_size": 16, "puzzle_emb_len": 2}),
    "mlp": ({"mixer": "mlp", "positions": "none"}, {"loss": "stablemax"}),
    "hrm": ({"kind": "hrm", "H_layers": 1, "gradient": "one_step"}, {"q_continue": True}),
    "groups": ({"mixer": "groups", "positions": "none"}, {"symbol_states": True}),
}


def make_puzzle_model(kind: str = "groups", seed: int = 0) -> PuzzleModel:
    """Return a tiny model for 4x4 Sudoku of which every number is random."""
    torch.manual_seed(seed)
    reasoner, around = KINDS[kind]
    config = PuzzleModelConfig(
        reasoner=ReasonerConfig(**SIZES | reasoner),
        vocab_size=PUZZLE.vocab_size,
        num_cells=PUZZLE.num_cells,
        num_puzzles=3,
        **around,
    )
    model = PuzzleModel(config, PUZZLE.groups()).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def make_puzzles(num: int = NUM_PUZZLES, split: str = "train", augment: bool = True) -> Any:
    """Return 4x4 Sudokus with a row each of the puzzle table."""
    grids = PUZZLE.generate(num, 0, split)
    return PuzzleDataset(PUZZLE, *grids, augment, torch.arange(num) % NUM_PUZZLES)


def make_puzzle_trainer(
    folder: Path,
    data: Any = None,
    train: TrainConfig = TRAIN,
    model_config: PuzzleModelConfig = PUZZLE_MODEL,
    **changes: Any,
) -> Trainer:
    """Return a trainer of a tiny puzzle model; see `make_trainer`."""
    torch.manual_seed(train.seed)
    accelerator = Accelerator(mixed_precision="no")
    model = PuzzleModel(model_config, PUZZLE.groups())
    torch.nn.init.constant_(model.q_head.bias[:1], 5.0)
    val = PuzzleEvaluator(make_puzzles(5, "val"), accelerator)

    def evaluate() -> dict[str, float]:
        counter = val.sweep(model, [2]).at[2]
        return {"val/exact_accuracy": counter.exact_accuracy, "val/accuracy": counter.accuracy}

    def options(progress: float, limit: int) -> dict[str, Any]:
        return {"max_refinement_steps": limit}

    return Trainer(
        accelerator,
        model,
        make_puzzles() if data is None else data,
        replace(train, **changes),
        folder,
        evaluate,
        report=lambda line: None,
        options=options,
    )


def train_once(llm: FrozenLLM, folder: Path) -> LatentReasoner:
    """Return a reasoner that knows the first six examples by heart; later calls load it."""
    path = folder / "knows_six.safetensors"
    if not path.exists():
        trainer = make_trainer(llm, folder, make_data(llm, 6), max_steps=320, batch_size=6)
        for _ in range(320):
            trainer.train_step()
        save_file(trainer.model.core.state_dict(), path)
        reset_accelerate()
    model = LatentReasoner(llm, MODEL).eval()
    model.core.load_state_dict(load_file(path))
    return model


class Probe:
    """A dataset that calls `before(number, positions)` before it gives the batch of a step."""

    def __init__(self, data: Any, before: Callable[[int, Tensor], None]) -> None:
        self.data, self.before = data, before
        self.num_batches = -1  # a trainer looks at the data before it begins
        self.last: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.data)

    @property
    def num_tokens(self) -> int:
        return self.data.num_tokens

    def at(self, positions: Tensor, seed: int) -> dict[str, Tensor]:
        self.num_batches += 1
        self.before(self.num_batches, positions)
        self.last = self.data.at(positions, seed)
        return self.last


def reset_accelerate() -> None:
    """Forget the processes that this one, or the one that it was forked from, had formed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def forked(action: Callable[[], object], streams: Sequence[Path | str] = (os.devnull,) * 2) -> int:
    """Run `action` in a child process, without the seconds that imports take.

    Args:
        action: what to do.
        streams: files for stdout and stderr.

    Returns:
        0, the exit code, 1 after an exception, or minus the signal that ended it.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number, path in enumerate(streams, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            for number in (signal.SIGINT, signal.SIGTERM):
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, default)
            logging.root.handlers.clear()
            reset_accelerate()
            action()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise


def on_two_processes(action: Callable[..., None], *args: Any) -> None:
    """Run `action(*args)` in two processes joined by gloo; an error in one is raised here."""
    debug_launcher(_fresh, args=(action, *args), num_processes=2)


def _fresh(action: Callable[..., None], *args: Any) -> None:
    # Accelerate would give each process all cores, and they would wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"
    reset_accelerate()
    action(*args)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def last_checkpoint(folder: Path) -> Checkpoint:
    checkpoint = latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def assert_same_run(folder: Path, expected: Path) -> None:
    """Compare metrics, weights, averages, optimizer, carry and best weights bit by bit."""
    assert (folder / "metrics.jsonl").read_bytes() == (expected / "metrics.jsonl").read_bytes()
    ours, theirs = last_checkpoint(folder), last_checkpoint(expected)
    assert ours.step == theirs.step
    assert ours.state | {"seconds": 0} == theirs.state | {"seconds": 0}
    assert ours.tensors.keys() == theirs.tensors.keys()
    for group, named in theirs.tensors.items():
        assert ours.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            assert torch.equal(ours.tensors[group][name], tensor), f"{group}/{name}"


def assert_nearly_same_run(folder: Path, expected: Path, tolerance: float) -> None:
    """Compare metrics, weights, averages and best weights within rounding, the carry exactly."""
    ours, theirs = last_checkpoint(folder), last_checkpoint(expected)
    assert ours.step == theirs.step
    for group in ("model", "ema", "best"):
        assert ours.tensors[group].keys() == theirs.tensors[group].keys()
        for name, tensor in theirs.tensors[group].items():
            torch.testing.assert_close(
                ours.tensors[group][name], tensor, rtol=0, atol=tolerance, msg=f"{group}/{name}"
            )
    for name in ("data.position", "refinement_steps", "halted"):
        assert torch.equal(ours.tensors["carry"][name], theirs.tensors["carry"][name])
    for ours_line, line in zip(
        read_lines(folder / "metrics.jsonl"), read_lines(expected / "metrics.jsonl"), strict=True
    ):
        assert ours_line == pytest.approx(line, abs=1e-5)
