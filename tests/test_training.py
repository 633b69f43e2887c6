"""The training loop: resume, several processes, signals, bad numbers, order of data, learning."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import PartialState
from tiny_runs import (
    TRAIN,
    Probe,
    assert_nearly_same_run,
    assert_same_run,
    forked,
    last_checkpoint,
    make_data,
    make_trainer,
    on_two_processes,
    read_lines,
)
from torch import Tensor

from latent_reason import training
from latent_reason.checkpoint import latest_checkpoint
from latent_reason.data.order import _orders, data_order, rows_at
from latent_reason.errors import CheckpointError, ConfigError, NonFiniteError
from latent_reason.evaluation import Evaluator
from latent_reason.llm import FrozenLLM
from latent_reason.train_config import HaltConfig, TrainConfig
from latent_reason.training import local_batch_size, use_bf16

pytestmark = pytest.mark.usefixtures("one_process", "no_fsync")
NUM_EXAMPLES = 22
MakeLLM = Callable[..., FrozenLLM]


@pytest.fixture
def base(make_llm: MakeLLM) -> FrozenLLM:
    return make_llm()


@pytest.fixture
def whole(base: FrozenLLM, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupted: a copy, the run itself is made once."""
    folder = tmp_path_factory.getbasetemp() / "whole"
    if not folder.exists():
        assert make_trainer(base, folder).run() == 0
    return shutil.copytree(folder, tmp_path / "whole")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def resume_to_the_end(base: FrozenLLM, folder: Path) -> int:
    """Finish the run in this process; returns the step that it went on from."""
    trainer = make_trainer(base, folder)
    trainer.resume()
    start = trainer.step
    assert trainer.run() == 0
    return start


# Resume


def test_a_tiny_run_has_an_epoch_edge_and_every_kind_of_halt(base: FrozenLLM, whole: Path) -> None:
    positions = last_checkpoint(whole).tensors["carry"]["data.position"]
    assert positions.min() > NUM_EXAMPLES
    lines = read_lines(whole / "metrics.jsonl")
    limits = [line["train/max_refinement_steps"] for line in lines if "train/loss" in line]
    assert len(limits) == 6
    assert limits[0] == 1
    assert limits[-1] == 4
    assert [line["step"] for line in lines if "val/accuracy" in line] == [8, 16, 24]


@pytest.mark.parametrize("step", [1, 6, 12, 20])
def test_resume_after_a_kill_between_checkpoints(
    base: FrozenLLM, whole: Path, tmp_path: Path, step: int
) -> None:
    data = Probe(make_data(base, NUM_EXAMPLES), stop_at(step, signal.SIGKILL))
    folder = tmp_path / "killed"
    assert forked(lambda: make_trainer(base, folder, data).run()) == -signal.SIGKILL
    assert resume_to_the_end(base, folder) == (step - 1) // 8 * 8
    assert_same_run(folder, whole)


def test_resume_after_a_kill_at_an_epoch_edge(base: FrozenLLM, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"

    def train() -> None:
        def before(number: int, positions: Tensor) -> None:
            epochs = positions // NUM_EXAMPLES
            if (epochs == 1).any() and (epochs == 0).any():
                kill()

        make_trainer(base, folder, Probe(make_data(base, NUM_EXAMPLES), before)).run()

    assert forked(train) == -signal.SIGKILL
    resume_to_the_end(base, folder)
    assert_same_run(folder, whole)


@pytest.mark.parametrize("save", [1, 2, 3])
@pytest.mark.parametrize("moment", ["fsync", "before the rename", "after the rename"])
def test_resume_after_a_kill_in_a_save(
    base: FrozenLLM, whole: Path, tmp_path: Path, save: int, moment: str
) -> None:
    folder = tmp_path / "killed"

    def train() -> None:
        rename, fsync, last = os.rename, os.fsync, f"step-{8 * save:08d}"

        def kill_at_rename(source: Any, target: Any) -> None:
            if Path(target).name == last and moment == "before the rename":
                kill()
            rename(source, target)
            if Path(target).name == last and moment == "after the rename":
                kill()

        def kill_at_fsync(descriptor: int) -> None:
            if moment == "fsync" and last in os.readlink(f"/proc/self/fd/{descriptor}"):
                kill()
            fsync(descriptor)

        os.rename, os.fsync = kill_at_rename, kill_at_fsync
        make_trainer(base, folder).run()

    assert forked(train) == -signal.SIGKILL
    complete = save if moment == "after the rename" else save - 1
    assert resume_to_the_end(base, folder) == 8 * complete
    assert_same_run(folder, whole)


def test_a_used_folder_without_a_checkpoint_starts_over(
    base: FrozenLLM, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "used"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 4, "train/loss": 1.0}\n{"step": 400}\n')
    assert resume_to_the_end(base, folder) == 0
    assert_same_run(folder, whole)


def test_resume_of_a_finished_run_changes_nothing(base: FrozenLLM, whole: Path) -> None:
    metrics = (whole / "metrics.jsonl").read_bytes()
    trainer = make_trainer(base, whole)
    assert trainer.resume()
    assert trainer.run() == 0
    assert trainer.step == 24
    assert (whole / "metrics.jsonl").read_bytes() == metrics
    trainer.use_best_weights()
    best = last_checkpoint(whole).tensors["best"]
    assert all(torch.equal(best[str(i)], p) for i, p in enumerate(trainer.trainable))


def test_a_damaged_newest_checkpoint_is_skipped(
    base: FrozenLLM, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    file = folder / "checkpoints" / "step-00000024" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert resume_to_the_end(base, folder) == 16
    assert_same_run(folder, whole)


def test_only_damaged_checkpoints_are_refused(base: FrozenLLM, whole: Path) -> None:
    for folder in (whole / "checkpoints").glob("step-*"):
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"all checkpoints are damaged \(step-0.*restore"):
        make_trainer(base, whole).resume()


def test_the_newest_two_and_the_best_checkpoint_are_kept(base: FrozenLLM, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path, max_steps=10, eval_every=2, save_every=2)
    scores = iter([0.1, 0.9, 0.5, 0.5, 0.5])
    trainer.evaluate = lambda: {"val/exact_accuracy": next(scores), "val/accuracy": 0.5}
    trainer.run()
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000008", "step-00000010"]
    assert trainer.best == {"step": 4, "score": [0.9, 0.5]}


def test_the_best_step_may_be_one_whose_head_knows_when_to_stop(
    base: FrozenLLM, tmp_path: Path
) -> None:
    trainer = make_trainer(base, tmp_path, max_steps=8, eval_every=2, save_every=8)
    scores = iter([(0.5, 0.1), (0.4, 0.6), (0.55, 0.3), (0.3, 0.2)])

    def evaluate() -> dict[str, float]:
        exact, halted = next(scores)
        own = {"val/exact_accuracy": exact, "val/halted_exact_accuracy": halted}
        return own | {"val/accuracy": 0.5}

    trainer.evaluate = evaluate
    trainer.run()
    assert trainer.best == {"step": 4, "score": [0.6, 0.5]}


@pytest.mark.parametrize(
    ("changes", "num_examples", "message"),
    [
        ({"learning_rate": 0.02}, NUM_EXAMPLES, "learning_rate 0.01 -> 0.02"),
        ({"halt": HaltConfig(halt_max_steps=3)}, NUM_EXAMPLES, "halt.halt_max_steps 4 -> 3"),
        ({}, NUM_EXAMPLES - 1, "num_examples 22 -> 21"),
    ],
)
def test_resume_refuses_other_settings(
    base: FrozenLLM, whole: Path, changes: dict[str, Any], num_examples: int, message: str
) -> None:
    trainer = make_trainer(base, whole, make_data(base, num_examples), **changes)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        trainer.resume()
    assert trainer.step == 0


def test_resume_refuses_other_data(base: FrozenLLM, whole: Path) -> None:
    data = make_data(base, NUM_EXAMPLES)
    data.labels[0, 0] += 1
    with pytest.raises(CheckpointError, match=r"made with other settings \(examples "):
        make_trainer(base, whole, data).resume()


def test_resume_refuses_another_model(base: FrozenLLM, make_llm: MakeLLM, whole: Path) -> None:
    wider = make_llm(hidden_size=64)
    with pytest.raises(CheckpointError, match="weights are for another model"):
        make_trainer(wider, whole).resume()


# Several processes


def train_two(base: FrozenLLM, folder: Path, train: TrainConfig) -> None:
    trainer = make_trainer(base, folder, train=train)
    assert trainer.accelerator.num_processes == 2
    assert len(trainer.carry.halted) == train.batch_size // 2
    trainer.resume()
    if trainer.accelerator.process_index == 1:
        time.sleep(0.3)  # the log of the other process is open by now
    assert trainer.run() == 0


def test_two_processes_do_what_one_does(base: FrozenLLM, tmp_path: Path) -> None:
    train = replace(TRAIN, max_steps=50, batch_size=8, learning_rate=1e-3, save_every=20)
    make_trainer(base, tmp_path / "one", train=train).run()
    on_two_processes(train_two, base, tmp_path / "two", train)
    assert_nearly_same_run(tmp_path / "two", tmp_path / "one", tolerance=1e-6)


def stop_at(step: int, number: int = signal.SIGTERM, rank: int = 0) -> Callable[..., None]:
    """Return what makes a `Probe` send a signal to its own process in a step."""

    def before(batch: int, positions: Tensor) -> None:
        if batch == step and PartialState().process_index == rank:
            os.kill(os.getpid(), number)

    return before


def test_two_processes_finish_what_one_began(base: FrozenLLM, tmp_path: Path) -> None:
    make_trainer(base, tmp_path / "one", train=TRAIN).run()
    data = Probe(make_data(base, NUM_EXAMPLES), stop_at(6))  # between two lines of metrics
    assert make_trainer(base, tmp_path / "both", data, TRAIN).run() == signal.SIGTERM
    on_two_processes(train_two, base, tmp_path / "both", TRAIN)
    assert_nearly_same_run(tmp_path / "both", tmp_path / "one", tolerance=1e-5)


def test_batch_size_must_be_a_multiple_of_the_processes() -> None:
    assert local_batch_size(TrainConfig(batch_size=12), 3) == 4
    with pytest.raises(ConfigError, match="batch_size: got 12, expected a multiple of the 5"):
        local_batch_size(TrainConfig(batch_size=12), 5)


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [7, 24])
def test_a_signal_saves_and_stops(
    base: FrozenLLM, whole: Path, tmp_path: Path, number: signal.Signals, step: int
) -> None:
    folder = tmp_path / "stopped"
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    data = Probe(make_data(base, NUM_EXAMPLES), stop_at(step, number))
    trainer = make_trainer(base, folder, data)
    assert trainer.run() == number
    assert trainer.step == last_checkpoint(folder).step == step
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert resume_to_the_end(base, folder) == step
    assert_same_run(folder, whole)


def test_a_signal_during_the_last_evaluation_stops(
    base: FrozenLLM, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    trainer = make_trainer(base, folder)
    evaluate = trainer.evaluate

    def interrupted() -> dict[str, float]:
        if trainer.step == 24:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate()

    trainer.evaluate = interrupted
    assert trainer.run() == signal.SIGTERM
    assert_same_run(folder, whole)
    assert resume_to_the_end(base, folder) == 24


def test_a_second_signal_acts_at_once(base: FrozenLLM, tmp_path: Path) -> None:
    def before(batch: int, positions: Tensor) -> None:
        stop_at(3)(batch, positions)
        stop_at(3)(batch, positions)

    data = Probe(make_data(base, NUM_EXAMPLES), before)
    assert forked(lambda: make_trainer(base, tmp_path, data).run()) == -signal.SIGTERM
    assert latest_checkpoint(tmp_path / "checkpoints") is None


def stop_two(base: FrozenLLM, folder: Path) -> None:
    data = Probe(make_data(base, NUM_EXAMPLES), stop_at(6, rank=1))
    trainer = make_trainer(base, folder, data, TRAIN)
    assert trainer.accelerator.num_processes == 2
    assert trainer.run() == signal.SIGTERM
    (folder / f"stopped-{trainer.accelerator.process_index}").write_text(str(trainer.step))


def test_a_signal_to_one_process_stops_both_at_the_same_step(
    base: FrozenLLM, tmp_path: Path
) -> None:
    make_trainer(base, tmp_path / "one", train=TRAIN).run()
    folder = tmp_path / "stopped"
    on_two_processes(stop_two, base, folder)
    assert [(folder / f"stopped-{rank}").read_text() for rank in (0, 1)] == ["6", "6"]
    on_two_processes(train_two, base, folder, TRAIN)
    assert_nearly_same_run(folder, tmp_path / "one", tolerance=1e-5)


# Numbers that are not finite


def weights_of(trainer: Any) -> list[Tensor]:
    return [p.detach().clone() for p in (*trainer.trainable, *trainer.averages)]


def spoil(trainer: Any, rank: int = 0, step: int = 5) -> None:
    """Make the loss of one process NaN at one step."""
    forward = trainer.wrapped.forward

    def spoiled(**batch: Any) -> Any:
        output = forward(**batch)
        if trainer.step + 1 == step and trainer.accelerator.process_index == rank:
            output.loss = output.loss * torch.nan
        return output

    trainer.wrapped.forward = spoiled


def assert_stops_unchanged(trainer: Any) -> None:
    while trainer.step < 4:
        trainer.train_step()
    before = weights_of(trainer)
    states = [state for o in trainer.optimizers for state in o.state.values()]
    state = [{key: value.clone() for key, value in s.items()} for s in states]
    assert len(state) == len(trainer.trainable)
    message = f"step 5, process {trainer.accelerator.process_index}: .*nothing was updated"
    with pytest.raises(NonFiniteError, match=message):
        trainer.train_step()
    assert all(map(torch.equal, weights_of(trainer), before))
    assert trainer.step == 4
    for now, then in zip(states, state, strict=True):
        assert now.keys() == then.keys()
        assert all(torch.equal(now[key], then[key]) for key in then)


def test_a_loss_that_is_not_finite_updates_nothing(base: FrozenLLM, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path)
    spoil(trainer)
    assert_stops_unchanged(trainer)


def test_the_first_gradient_that_is_not_finite_is_named(base: FrozenLLM, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path)
    name, parameter = [*trainer.model.core.named_parameters()][-1]
    parameter.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match=f"gradient of core.{name} is not finite"):
        trainer.train_step()


def spoil_one_of_two(base: FrozenLLM, folder: Path) -> None:
    trainer = make_trainer(base, folder)
    assert trainer.accelerator.num_processes == 2
    spoil(trainer, rank=1)
    assert_stops_unchanged(trainer)
    (folder / f"stopped-{trainer.accelerator.process_index}").touch()


def test_a_bad_loss_on_one_process_stops_both(base: FrozenLLM, tmp_path: Path) -> None:
    on_two_processes(spoil_one_of_two, base, tmp_path)
    assert len(list(tmp_path.glob("stopped-*"))) == 2


# Order of data


def test_the_data_order_is_a_pure_function() -> None:
    order = data_order(3, 1, 50)
    _orders.cache_clear()
    torch.manual_seed(99)
    assert torch.equal(data_order(3, 1, 50), order)
    assert sorted(order.tolist()) == list(range(50))
    others = [data_order(3, 2, 50), data_order(4, 1, 50)]
    assert not any(torch.equal(order, other) for other in others)


def test_rows_at_walks_through_the_epochs() -> None:
    rows = rows_at(torch.arange(30), seed=5, num=10)
    for epoch in range(3):
        assert torch.equal(rows[10 * epoch : 10 * epoch + 10], data_order(5, epoch, 10))
    shuffled = torch.randperm(30)
    assert torch.equal(rows_at(shuffled, seed=5, num=10), rows[shuffled])


def visits(base: FrozenLLM, folder: Path, steps: int) -> list[list[tuple[int, int]]]:
    """Return for each batch row the (position, row) pairs in the order that they came to it.

    Rows are recognised by what they hold.
    """
    whole = make_data(base, NUM_EXAMPLES).batch(torch.arange(NUM_EXAMPLES))
    data = Probe(make_data(base, NUM_EXAMPLES), lambda number, positions: None)
    trainer = make_trainer(base, folder, data, max_steps=steps, seed=3)
    seen: list[list[tuple[int, int]]] = [[] for _ in trainer.carry.halted]
    for _ in range(steps):
        trainer.train_step()
        positions = trainer.carry.data["position"].tolist()
        alike = [
            (data.last[name][:, None] == whole[name]).all(dim=2) for name in ("input_ids", "labels")
        ]
        found = (alike[0] & alike[1]).nonzero()
        assert found[:, 0].tolist() == [*range(len(seen))]
        for place, pair in enumerate(zip(positions, found[:, 1].tolist(), strict=True)):
            if not seen[place] or seen[place][-1] != pair:
                seen[place].append(pair)
    return seen


def visit_on_two(base: FrozenLLM, folder: Path) -> None:
    columns = visits(base, folder, steps=30)
    rank = PartialState().process_index
    (folder / f"columns-{rank}").write_text(json.dumps(columns))


def test_columns_do_not_depend_on_the_number_of_processes(base: FrozenLLM, tmp_path: Path) -> None:
    columns = json.loads(json.dumps(visits(base, tmp_path, steps=30)))
    on_two_processes(visit_on_two, base, tmp_path)
    parts = [json.loads((tmp_path / f"columns-{rank}").read_text()) for rank in (0, 1)]
    assert parts[0] + parts[1] == columns


# Learning


def test_a_tiny_reasoner_memorises_eight_examples(base: FrozenLLM, tmp_path: Path) -> None:
    digest = base.sha256()
    halt = HaltConfig(halt_max_steps=2, halt_exploration_prob=0.1)
    trainer = make_trainer(
        base,
        tmp_path,
        make_data(base, 8),
        max_steps=300,
        batch_size=8,
        eval_every=300,
        log_every=10,
        save_every=300,
        halt=halt,
    )
    torch.nn.init.constant_(trainer.model.core.q_head.bias, -5.0)
    start = [p.detach().clone() for p in trainer.trainable]
    trainer.run()
    lines = [line for line in read_lines(tmp_path / "metrics.jsonl") if "train/loss" in line]
    assert lines[0]["train/exact_accuracy"] < 0.5
    assert lines[-1]["train/exact_accuracy"] > 0.9
    assert lines[-1]["train/accuracy"] >= lines[-1]["train/exact_accuracy"]
    assert lines[-1]["train/loss"] < 0.1 * lines[0]["train/loss"]
    assert lines[-1]["train/refinement_steps"] < 1.5, "the halting head has not learned to stop"
    assert not any(map(torch.equal, start, trainer.trainable))
    assert not any(map(torch.equal, trainer.trainable, trainer.averages))
    trainer.use_best_weights()
    counter = Evaluator(trainer.data, trainer.accelerator).by_refinement_steps(trainer.model, [2])[
        2
    ]
    assert counter.counts()[:2] == [8, 8]
    assert base.sha256() == digest
    assert not any(p.requires_grad for p in base.parameters())


def test_averaged_weights_are_lent_only(base: FrozenLLM, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path)
    for _ in range(3):
        trainer.train_step()
    raw = [p.detach().clone() for p in trainer.trainable]
    with pytest.raises(KeyError), trainer.averaged_weights():
        assert all(map(torch.equal, trainer.trainable, trainer.averages))
        assert not trainer.model.training
        raise KeyError
    assert all(map(torch.equal, trainer.trainable, raw))
    assert not any(map(torch.equal, raw, trainer.averages))


def test_a_time_budget_ends_the_run(
    base: FrozenLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(start=100)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    trainer = make_trainer(base, tmp_path, max_seconds=2.5, max_steps=1)
    assert trainer.run() == 0
    assert (trainer.step, trainer.seconds) == (3, 3)
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [3, 3]
    assert "train/loss" in lines[0]
    assert last_checkpoint(tmp_path).step == trainer.step


def test_perf_is_not_in_the_metrics(whole: Path) -> None:
    names = {name for line in read_lines(whole / "metrics.jsonl") for name in line}
    assert not [name for name in names if "perf" in name or "seconds" in name]
    assert len(read_lines(whole / "perf.jsonl")) == 6


def test_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert use_bf16(TrainConfig(precision="bf16"), cpu)
    assert not use_bf16(TrainConfig(precision="fp32"), cpu)
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda amx=amx: {"amx_bf16": amx})
        assert use_bf16(TrainConfig(precision="auto", compile=True), cpu) == amx
        assert not use_bf16(TrainConfig(precision="auto"), cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert use_bf16(TrainConfig(precision="auto"), torch.device("cuda"))
    assert not use_bf16(TrainConfig(precision="fp32"), torch.device("cuda"))


def test_bf16_trains_close_to_fp32(base: FrozenLLM, tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        make_trainer(base, tmp_path / precision, precision=precision, max_steps=8).run()
    ours, theirs = (
        [
            line["train/loss"]
            for line in read_lines(tmp_path / p / "metrics.jsonl")
            if "train/loss" in line
        ]
        for p in ("bf16", "fp32")
    )
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours != theirs
