"""The training loop on puzzles: every optimizer, the puzzle table, resume, processes, options."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    NUM_PUZZLES,
    PUZZLE_MODEL,
    TRAIN,
    Probe,
    assert_nearly_same_run,
    assert_same_run,
    forked,
    last_checkpoint,
    make_puzzle_trainer,
    make_puzzles,
    on_two_processes,
    read_lines,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from latent_reason.errors import NonFiniteError
from latent_reason.train_config import HaltConfig
from latent_reason.training import Trainer

pytestmark = pytest.mark.usefixtures("one_process", "no_fsync")
OPTIMIZERS = ("adamw", "adam_atan2", "muon")


REASONER = replace(PUZZLE_MODEL.reasoner, residual_init="normal")
NORMAL = replace(PUZZLE_MODEL, reasoner=REASONER)
MLP = replace(PUZZLE_MODEL, reasoner=replace(PUZZLE_MODEL.reasoner, mixer="mlp", hidden_size=32))
GROUPS = replace(
    PUZZLE_MODEL,
    reasoner=replace(REASONER, mixer="groups", positions="none"),
    symbol_states=True,
    puzzle_emb_size=0,
    puzzle_emb_len=0,
)
AS_HRM = replace(
    PUZZLE_MODEL,
    reasoner=replace(REASONER, kind="hrm", H_layers=1, gradient="one_step", positions="learned"),
    q_continue=True,
    loss="stablemax",
)


def table_of(trainer: Trainer) -> Tensor:
    (table,) = trainer.tables
    return table.detach().clone()


# Resume


def kill_at(step: int) -> Any:
    def before(batch: int, positions: Tensor) -> None:
        if batch == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return before


RUNS: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": name} for name in OPTIMIZERS},
    "hrm": {"model_config": AS_HRM, "optimizer": "adam_atan2", "grad_clip": None},
    "groups": {"model_config": GROUPS, "optimizer": "muon"},
    "chains": {"model_config": replace(GROUPS, num_chains=3)},
}


@pytest.mark.parametrize(("name", "augment"), [*[(name, True) for name in RUNS], ("hrm", False)])
def test_a_killed_run_resumes_bit_by_bit(tmp_path: Path, name: str, augment: bool) -> None:
    whole, folder, run = tmp_path / "whole", tmp_path / "killed", RUNS[name]
    data = make_puzzles(augment=augment)
    assert make_puzzle_trainer(whole, data, **run).run() == 0
    killed = Probe(data, kill_at(13))
    code = forked(lambda: make_puzzle_trainer(folder, killed, **run).run())
    assert code == -signal.SIGKILL
    trainer = make_puzzle_trainer(folder, data, **run)
    assert trainer.resume() and trainer.step == 8
    assert trainer.run() == 0
    assert_same_run(folder, whole)
    positions = last_checkpoint(whole).tensors["carry"]["data.position"]
    assert positions.min() > NUM_PUZZLES, "the run has no epoch edge"


def test_symmetries_drawn_in_training_change_the_run(tmp_path: Path) -> None:
    losses = []
    for augment in (True, False):
        folder = tmp_path / str(augment)
        make_puzzle_trainer(folder, make_puzzles(augment=augment)).run()
        lines = read_lines(folder / "metrics.jsonl")
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert losses[0] != losses[1]


# Several processes


def train_on_two(folder: Path, run: dict[str, Any]) -> None:
    trainer = make_puzzle_trainer(folder, **run)
    assert trainer.accelerator.num_processes == 2
    local = run["batch_size"] // 2
    assert len(trainer.carry.halted) == local

    def before(*args: Any) -> None:
        for table in trainer.tables:
            assert table.grad is not None
            assert table.grad._indices().shape[1] == local, "joined before its optimizer does"

    trainer.optimizers[-1].register_step_pre_hook(before)
    assert trainer.run() == 0
    (folder / f"ran-{trainer.accelerator.process_index}").touch()


# Muon orthogonalises in bf16, which turns rounding errors into ones of percents: after more steps
# they would be seen, although the processes do the same.
@pytest.mark.parametrize(
    "run",
    [
        {"optimizer": "adamw", "model_config": NORMAL},
        {"optimizer": "adamw", "model_config": GROUPS},
        {"optimizer": "adam_atan2", "grad_clip": None, "model_config": AS_HRM},
        {"optimizer": "muon", "max_steps": 5, "model_config": NORMAL},
    ],
    ids=["adamw", "groups", "hrm, adam_atan2", "muon"],
)
def test_two_processes_do_what_one_does(tmp_path: Path, run: dict[str, Any]) -> None:
    run = {"batch_size": 8, "learning_rate": 1e-3} | run
    start = make_puzzle_trainer(tmp_path / "one", **run)
    before = {name: p.detach().clone() for name, p in start.model.named_parameters()}
    start.run()
    on_two_processes(train_on_two, tmp_path / "two", run)
    assert {path.name for path in (tmp_path / "two").glob("ran-*")} == {"ran-0", "ran-1"}
    # Muon orthogonalises in bf16: a rounding of a gradient comes out as up to 2**-8 of a step of
    # 0.02, five times here. Other optimizers keep roundings as small as they are.
    tolerance = 5 * 0.02 * 2**-8 if run.get("optimizer") == "muon" else 1e-6
    assert_nearly_same_run(tmp_path / "two", tmp_path / "one", tolerance)
    after = last_checkpoint(tmp_path / "two").tensors["model"]
    for name, value in before.items():
        assert (after[name] - value).abs().max() > 1e-3, f"{name} has not been trained"
    assert ("puzzle_emb.weight" in before) == (run["model_config"] is not GROUPS)


# The puzzle table


def test_a_step_changes_the_rows_of_the_batch_and_no_others(tmp_path: Path) -> None:
    data = Probe(make_puzzles(), lambda number, positions: None)
    rate, decay = 0.02, 0.5
    trainer = make_puzzle_trainer(
        tmp_path,
        data,
        model_config=NORMAL,
        puzzle_learning_rate=rate,
        puzzle_weight_decay=decay,
    )
    seen = set()
    for step in range(4):
        before = table_of(trainer)
        trainer.train_step()
        after, rows = table_of(trainer), data.last["puzzle_identifiers"].unique().tolist()
        changed = (after != before).any(dim=1).nonzero()[:, 0].tolist()
        assert changed == rows
        lr = rate * min(1, (step + 1) / TRAIN.warmup_steps)
        moved = (after - (1 - lr * decay) * before)[rows].abs()
        torch.testing.assert_close(moved, torch.full_like(moved, lr), rtol=0, atol=1e-6)
        seen |= set(rows)
    assert 4 < len(seen) < NUM_PUZZLES
    unseen = [row for row in range(NUM_PUZZLES) if row not in seen]
    assert table_of(trainer)[unseen].eq(0).all()


def test_the_table_is_not_averaged_and_best_weights_bring_theirs(tmp_path: Path) -> None:
    trainer = make_puzzle_trainer(tmp_path, model_config=NORMAL, max_steps=8, eval_every=2)
    tables: list[Tensor] = []
    scores = iter([0.1, 0.9, 0.5, 0.4])

    def evaluate() -> dict[str, float]:
        tables.append(table_of(trainer))
        return {"val/exact_accuracy": next(scores), "val/accuracy": 0.5}

    trainer.evaluate = evaluate
    trainer.train_step()
    before = table_of(trainer)
    with trainer.averaged_weights():
        assert torch.equal(table_of(trainer), before)
    assert torch.equal(table_of(trainer), before) and before.ne(0).any()
    trainer.run()
    last = table_of(trainer)
    assert torch.equal(tables[3], last)
    assert not torch.equal(tables[1], last)
    trainer.use_best_weights()
    assert torch.equal(table_of(trainer), tables[1])
    resumed = make_puzzle_trainer(tmp_path, model_config=NORMAL, max_steps=8, eval_every=2)
    assert resumed.resume()
    assert torch.equal(table_of(resumed), last)
    resumed.use_best_weights()
    assert torch.equal(table_of(resumed), tables[1])


def test_a_gradient_of_the_table_that_is_not_finite_updates_nothing(tmp_path: Path) -> None:
    trainer = make_puzzle_trainer(tmp_path)
    trainer.train_step()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    (table,) = trainer.tables

    def spoiled(*args: Any) -> Any:
        assert table.grad is not None
        table.grad._values()[0, 0] = torch.nan
        return norm(*args)

    norm = torch.nn.utils.get_total_norm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "get_total_norm", spoiled)
        with pytest.raises(NonFiniteError, match="step 2, .* gradient of puzzle_emb.weight is not"):
            trainer.train_step()
    assert all(map(torch.equal, trainer.model.parameters(), before))


# Settings of a step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_rate_follows_the_schedule_from_its_own_peak(tmp_path: Path, optimizer: Any) -> None:
    rates = {"learning_rate": 1e-3, "muon_learning_rate": 2e-2, "puzzle_learning_rate": 3e-2}
    trainer = make_puzzle_trainer(tmp_path, optimizer=optimizer, **rates)
    used = {"learning_rate", "puzzle_learning_rate"}
    used |= {"muon_learning_rate"} if optimizer == "muon" else set()
    config = trainer.config
    for step in range(24):
        trainer.train_step()
        factor = config.learning_rate_factor(step, step / 24)
        found = {group["lr"] for o in trainer.optimizers for group in o.param_groups}
        assert found == {rates[name] * factor for name in used}
    assert factor < 0.5


def gradient_norms(trainer: Trainer) -> list[float]:
    """Run five steps; return the norm of the dense gradients as the optimizer gets them."""
    norms: list[float] = []
    torch.nn.init.normal_(trainer.model.lm_head.weight, std=20)

    def before(*args: Any) -> None:
        grads = [p.grad.flatten() for p in trainer.trainable if p.grad is not None]
        norms.append(torch.cat(grads).norm().item())

    trainer.optimizers[0].register_step_pre_hook(before)
    for _ in range(5):
        trainer.train_step()
    return norms


def test_gradients_are_clipped_only_if_asked(tmp_path: Path) -> None:
    free = gradient_norms(make_puzzle_trainer(tmp_path, grad_clip=None))
    assert min(free) > 1.5
    clipped = gradient_norms(make_puzzle_trainer(tmp_path, grad_clip=0.01))
    assert clipped == pytest.approx([0.01] * 5, rel=1e-3)


def test_the_model_is_told_the_limit_of_the_step(tmp_path: Path) -> None:
    trainer = make_puzzle_trainer(tmp_path, model_config=AS_HRM)
    calls, limits, forward = [], [], trainer.model.forward

    def options(progress: float, limit: int) -> dict[str, Any]:
        calls.append((progress, limit))
        return {"max_refinement_steps": limit}

    def watched(**batch: Any) -> Any:
        limits.append(batch["max_refinement_steps"])
        return forward(**batch)

    trainer.options, trainer.model.forward = options, watched
    for _ in range(24):
        trainer.train_step()
    expected = [(s / 24, TRAIN.halt.limit_at(s / 24)) for s in range(24)]
    assert calls == expected
    assert limits == [limit for _, limit in expected]
    assert {1, 2, 3, 4} == set(limits)


def test_the_step_is_compiled_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    make_puzzle_trainer(tmp_path)
    assert compiled == []
    trainer = make_puzzle_trainer(tmp_path, compile=True)
    assert compiled == [trainer.wrapped]


def test_every_number_of_cycles_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    plain = replace(MLP, puzzle_emb_size=0, puzzle_emb_len=0)
    trainer = make_puzzle_trainer(tmp_path, model_config=plain, compile=True)
    few = [(1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (1, 4), (3, 1), (1, 5), (1, 6)]
    for cycles in few:
        trainer.options = lambda *args, now=cycles: {"max_refinement_steps": 4, "cycles": now}
        before = counter.frame_count
        trainer.train_step()
        assert counter.frame_count == before + 1, f"{cycles} is not compiled"
    trainer.train_step()
    assert counter.frame_count == before + 1, "compiled again although nothing changed"


# Halting


def test_q_continue_decides_who_halts(tmp_path: Path) -> None:
    """With exploration off, rows halt where q_halt is above q_continue, and at the limit."""
    halt = HaltConfig(halt_max_steps=3, halt_exploration_prob=0.0)
    trainer = make_puzzle_trainer(tmp_path, model_config=AS_HRM, halt=halt)
    seen = []
    forward = trainer.model.forward

    def watched(**batch: Any) -> Any:
        seen.append(forward(**batch))
        return seen[-1]

    trainer.model.forward = watched
    torch.nn.init.normal_(trainer.model.q_head.weight)
    torch.nn.init.zeros_(trainer.model.q_head.bias)
    kinds = set()
    for _ in range(24):
        trainer.train_step()
        output = seen[-1]
        steps, stop = output.carry.refinement_steps, output.stop
        assert torch.equal(stop, output.q_halt_logits > output.q_continue_logits)
        assert torch.equal(trainer.carry.halted, stop | (steps >= 3))
        kinds |= {(int(n), bool(s)) for n, s in zip(steps, stop, strict=True)}
    assert {(1, True), (1, False), (3, False)} <= kinds, kinds


# Learning


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_tiny_model_memorises_eight_puzzles(tmp_path: Path, optimizer: Any) -> None:
    halt = HaltConfig(halt_max_steps=2, halt_exploration_prob=0.1)
    config = replace(
        TRAIN, max_steps=70, batch_size=8, optimizer=optimizer, halt=halt, log_every=10
    )
    data = make_puzzles(8, augment=False)
    trainer = make_puzzle_trainer(tmp_path, data, replace(config, eval_every=70), MLP)
    torch.nn.init.constant_(trainer.model.q_head.bias, -5.0)
    trainer.run()
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert lines[0]["train/exact_accuracy"] < 0.5
    assert lines[-1]["train/exact_accuracy"] > 0.9
    assert lines[-1]["train/accuracy"] >= lines[-1]["train/exact_accuracy"]
    assert lines[-1]["train/loss"] < 0.1 * lines[0]["train/loss"]
    assert lines[-1]["train/refinement_steps"] < 1.5, "the halting head has not learned to stop"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("model_config", [GROUPS, MLP], ids=["groups", "mlp with a table"])
def test_a_compiled_run_is_the_same_up_to_rounding(tmp_path: Path, model_config: Any) -> None:
    for compiled in (False, True):
        folder = tmp_path / str(compiled)
        run = {"model_config": model_config, "max_steps": 6, "compile": compiled}
        assert make_puzzle_trainer(folder, **run).run() == 0
    assert_nearly_same_run(tmp_path / "True", tmp_path / "False", tolerance=1e-5)
