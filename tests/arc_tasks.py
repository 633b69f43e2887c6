"""ARC for tests: random tasks and their files, tiny runs on them, what stands for a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.data.arc_canvas import VOCAB_SIZE
from latent_reason.data.arc_files import ArcPair, ArcTask
from latent_reason.halting import Carry
from latent_reason.puzzles import arc_voting, evaluation
from latent_reason.puzzles.arc_experiment import ArcRun, ArcRunConfig
from latent_reason.puzzles.model import PuzzleOutput
from latent_reason.train_config import HaltConfig, TrainConfig

REPOSITORY = Path(__file__).parents[1]
FOLDER = next(
    (path for top in (REPOSITORY, REPOSITORY.parent) for path in top.glob("shared/data/arc")), None
)


def official(name: str) -> Path:
    assert FOLDER is not None
    return FOLDER / f"arc-agi_{name}_challenges.json.gz"


def random_grid(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 10, (height, width), dtype=np.uint8)


def make_task(name: str, num_train: int = 3, num_test: int = 1, seed: int = 0) -> ArcTask:
    generator = np.random.default_rng((seed, *name.encode()))

    def pair() -> ArcPair:
        height, width, high, wide = generator.integers(2, 12, 4)
        fresh = generator.integers(0, 2**31, 2)
        return ArcPair(random_grid(height, width, fresh[0]), random_grid(high, wide, fresh[1]))

    return ArcTask(
        name, tuple(pair() for _ in range(num_train)), tuple(pair() for _ in range(num_test))
    )


TASKS = [make_task("first"), make_task("second", 2, 2)]


def same(a: ArcTask, b: ArcTask) -> bool:
    pairs_a, pairs_b = [*a.train, *a.test], [*b.train, *b.test]
    counts = (len(a.train), len(a.test)) == (len(b.train), len(b.test))
    return (a.name == b.name and counts) and all(
        np.array_equal(p.input, q.input) and np.array_equal(p.output, q.output)  # type: ignore
        for p, q in zip(pairs_a, pairs_b, strict=True)
    )


# Files


def as_json(task: ArcTask, answers: bool = True) -> dict[str, list[dict[str, Any]]]:
    """Return a task in the form of the official repository."""

    def listed(pair: ArcPair, answer: bool) -> dict[str, Any]:
        assert pair.output is not None
        output = {"output": pair.output.tolist()} if answer else {}
        return {"input": pair.input.tolist()} | output

    return {
        "train": [listed(pair, True) for pair in task.train],
        "test": [listed(pair, answers) for pair in task.test],
    }


def write_task(path: Path, task: ArcTask, answers: bool = True) -> Path:
    path.write_text(json.dumps(as_json(task, answers)))
    return path


def as_kaggle(tasks: Sequence[ArcTask]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return tasks in the form of Kaggle: challenges, and solutions apart."""
    solutions = {task.name: [pair["output"] for pair in as_json(task)["test"]] for task in tasks}
    return {task.name: as_json(task, answers=False) for task in tasks}, solutions


def write_tasks(path: Path, tasks: Sequence[ArcTask], answers: bool = True) -> str:
    """Write tasks in the form of Kaggle; return the path of the challenges."""
    challenges, solutions = as_kaggle(tasks)
    path.with_name(f"{path.name}_challenges.json").write_text(json.dumps(challenges))
    if answers:
        path.with_name(f"{path.name}_solutions.json").write_text(json.dumps(solutions))
    return f"{path}_challenges.json"


PAIR = '{"input": [[1]], "output": [[2]]}'


def one_task(grid: str) -> str:
    """The text of a task whose second train input is the text `grid`."""
    pair = PAIR.replace("[[1]]", grid)
    return f'{{"train": [{PAIR}, {pair}], "test": [{{"input": [[4]]}}]}}'


# Runs

TRAINING = [make_task(name, num) for name, num in (("a", 3), ("b", 4), ("c", 2), ("d", 5))]
EVALUATION = [make_task("e", 2, 2), make_task("f", 3), make_task("g", 3)]
CONFIG = ArcRunConfig(
    model=PuzzleModelConfig(
        reasoner=ReasonerConfig(
            hidden_size=4, num_heads=1, width_multiple=4, L_layers=1, L_cycles=1, H_cycles=1
        ),
        puzzle_emb_size=6,
        puzzle_emb_len=2,
    ),
    train=TrainConfig(
        max_steps=6,
        batch_size=2,
        warmup_steps=2,
        precision="fp32",
        log_every=2,
        eval_every=3,
        save_every=3,
        halt=HaltConfig(halt_max_steps=2),
    ),
    num_val=2,
    num_augmentations=4,
    num_votes=2,
    refinement_steps=(1, 2),
)


def make_run(folder: Path, evaluation: list[ArcTask] = EVALUATION, **changes: Any) -> ArcRun:
    folder.mkdir(exist_ok=True)
    answers = changes.pop("answers", True)
    train = write_tasks(folder / "training", TRAINING)
    test = write_tasks(folder / "evaluation", evaluation, answers)
    options = {"train_data": (train,), "test_data": test, "output_dir": folder / "run"}
    run = ArcRun("arc-smoke", replace(CONFIG, **(options | changes)), resume=False)
    run.open_folder()
    return run


def assert_valid(submission: dict[str, Any], evaluation: list[ArcTask] = EVALUATION) -> None:
    assert {name: len(tests) for name, tests in submission.items()} == {
        task.name: len(task.test) for task in evaluation
    }
    for attempts in (attempts for tests in submission.values() for attempts in tests):
        assert list(attempts) == ["attempt_1", "attempt_2"]
        for grid in attempts.values():
            array = np.array(grid)  # raises on ragged rows
            assert array.ndim == 2 and max(array.shape) <= 30 and array.dtype.kind == "i"
            assert array.size and array.min() >= 0 and array.max() <= 9


# What stands for a model


class Oracle(nn.Module):
    """Stands for a model: what `answer` makes of the labels of the test pairs that it is given."""

    def __init__(self, run: ArcRun, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.known, self.config = {}, run.config.model
        for test in range(len(run.tasks.tests)):
            for k in range(1 + run.tasks.num_augmentations):
                batch = run.tasks.test_batch(torch.tensor([test]), torch.tensor([k]))
                self.known[self.key(batch["puzzle_identifiers"][0], batch["inputs"][0])] = answer(
                    batch["labels"][0]
                )

    @staticmethod
    def key(identifier: Tensor, grid: Tensor) -> tuple[int, bytes]:
        return int(identifier), grid.numpy().tobytes()

    def initial_carry(self, num: int, num_tokens: int) -> Carry:
        return Carry(*(torch.zeros(num) for _ in range(4)))

    def forward(self, carry: Carry, inputs: Tensor, puzzle_identifiers: Tensor) -> PuzzleOutput:
        pairs = zip(puzzle_identifiers, inputs, strict=True)
        tokens = torch.stack([self.known[self.key(*pair)] for pair in pairs])
        logits = nn.functional.one_hot(tokens, VOCAB_SIZE).float()
        sure = torch.ones(len(inputs))
        return PuzzleOutput(logits, sure, sure, carry, sure > 0)


def perfect(labels: Tensor) -> Tensor:
    return labels.clamp(min=0)


def broken(labels: Tensor) -> Tensor:
    return torch.zeros_like(labels)


def stand_in(
    monkeypatch: pytest.MonkeyPatch, arc_run: ArcRun, answer: Callable[[Tensor], Tensor]
) -> None:
    """Let an oracle answer in place of the model of the folder."""
    refine, oracle = evaluation.refine, Oracle(arc_run, answer)
    for module in (arc_voting, evaluation):
        monkeypatch.setattr(module, "refine", lambda model, *rest: refine(oracle, *rest))  # type: ignore
