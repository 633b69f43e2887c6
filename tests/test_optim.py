"""Optimizers and their groups, the moving average, and the optimizers' state as tensors."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tiny_runs import on_two_processes
from torch import Tensor, nn
from torch.optim import Optimizer

from latent_reason.optim import (
    AdamATan2,
    SignSGD,
    load_optimizer_tensors,
    make_ema,
    make_optimizers,
    optimizer_tensors,
)
from latent_reason.train_config import TrainConfig

CONFIG = TrainConfig(
    learning_rate=0.01,
    weight_decay=0.5,
    beta2=0.9,
    muon_learning_rate=0.02,
    puzzle_learning_rate=0.03,
    puzzle_weight_decay=0.2,
)
KINDS = ("adamw", "adam_atan2", "muon")


def make_module() -> nn.Module:
    """Return a module with matrices, vectors, a buffer and a frozen part."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(2, 2))
    module[3].requires_grad_(False)
    return module


class Puzzle(nn.Module):
    """Stands for a puzzle model: one of each kind of parameter, and something frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.puzzle_emb = nn.Embedding(5, 4, sparse=True)
        self.embed_tokens = nn.Embedding(7, 4)
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.net = nn.ModuleList([nn.Linear(4, 8, bias=False), nn.Linear(8, 4)])
        self.lm_head = nn.Linear(4, 7, bias=False)
        self.q_head = nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.frozen(self.embed_tokens(tokens) + self.puzzle_emb(tokens % 5))
        for layer in self.net:
            x = layer(x).tanh()
        return torch.cat((self.lm_head(x), self.q_head(x)), dim=-1)


def train(module: nn.Module, optimizers: Sequence[Optimizer], batches: Sequence[Tensor]) -> None:
    for batch in batches:
        (module(batch) - 1).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def groups_of(module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, tuple[Any, ...]]:
    """Return (kind of optimizer, peak rate, weight decay) by the name of the parameter."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    assert all(g["initial_lr"] == g["lr"] for o in optimizers for g in o.param_groups)
    listed = [
        (names[p], (type(optimizer), group["lr"], group["weight_decay"]))
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    ]
    assert len(listed) == len(dict(listed)), "a parameter is in two groups"
    return dict(listed)


# Groups


@pytest.mark.parametrize(
    ("kind", "expected", "vector_decay"),
    [("adamw", torch.optim.AdamW, 0.0), ("adam_atan2", AdamATan2, 0.5)],
)
def test_trainable_matrices_decay_and_with_adam_atan2_vectors_too(
    kind: Any, expected: type[Optimizer], vector_decay: float
) -> None:
    module = make_module()
    optimizers = make_optimizers(module, replace(CONFIG, optimizer=kind))
    matrix, vector = (expected, 0.01, 0.5), (expected, 0.01, vector_decay)
    assert groups_of(module, optimizers) == {
        "0.weight": matrix,
        "0.bias": vector,
        "1.weight": vector,
        "1.bias": vector,
        "2.weight": matrix,
        "2.bias": vector,
    }


def test_the_default_is_adamw_and_tables_go_to_sign_sgd() -> None:
    module = Puzzle()
    found = groups_of(module, make_optimizers(module, CONFIG))
    adamw, table = torch.optim.AdamW, (SignSGD, 0.03, 0.2)
    assert found.pop("puzzle_emb.weight") == table
    matrices = ("embed_tokens", "net.0", "net.1", "lm_head", "q_head")
    assert found == {f"{name}.weight": (adamw, 0.01, 0.5) for name in matrices} | {
        f"{name}.bias": (adamw, 0.01, 0.0) for name in ("net.1", "q_head")
    }


def test_muon_takes_the_linear_layers_that_are_no_heads() -> None:
    module = Puzzle()
    found = groups_of(module, make_optimizers(module, replace(CONFIG, optimizer="muon")))
    muon, adamw = (torch.optim.Muon, 0.02, 0.25), torch.optim.AdamW
    assert found == {
        "net.0.weight": muon,
        "net.1.weight": muon,
        "embed_tokens.weight": (adamw, 0.01, 0.5),
        "lm_head.weight": (adamw, 0.01, 0.5),
        "q_head.weight": (adamw, 0.01, 0.5),
        "net.1.bias": (adamw, 0.01, 0.0),
        "q_head.bias": (adamw, 0.01, 0.0),
        "puzzle_emb.weight": (SignSGD, 0.03, 0.2),
    }


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_adamw_has_its_epsilon(kind: Any) -> None:
    adamw, *_ = make_optimizers(Puzzle(), replace(CONFIG, optimizer=kind, adamw_eps=1e-3))
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["eps"] for group in adamw.param_groups] == [1e-3, 1e-3]


@pytest.mark.parametrize("kind", KINDS)
def test_decay_shrinks_all_matrices_alike_where_the_gradient_is_zero(kind: Any) -> None:
    module = Puzzle()
    for bias in (module.net[1].bias, module.q_head.bias):
        nn.init.ones_(bias)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizers = make_optimizers(module, replace(CONFIG, optimizer=kind))
    (module(torch.arange(3)) * 0).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    for name, parameter in module.named_parameters():
        kept = torch.ones(len(parameter))
        if name == "puzzle_emb.weight":
            kept[:3] = 1 - 0.03 * 0.2
        elif not name.startswith("frozen") and (parameter.ndim == 2 or kind == "adam_atan2"):
            kept[:] = 1 - 0.01 * 0.5
        expected = before[name] * (kept[:, None] if parameter.ndim == 2 else kept)
        torch.testing.assert_close(parameter.detach(), expected)


def test_nothing_to_train_needs_no_optimizer() -> None:
    assert make_optimizers(nn.Linear(2, 2).requires_grad_(False), CONFIG) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_without_vectors_can_be_optimised(kind: Any) -> None:
    linear = nn.Linear(2, 2, bias=False)
    before = linear.weight.detach().clone()
    train(linear, make_optimizers(linear, replace(CONFIG, optimizer=kind)), [torch.ones(1, 2)])
    assert not torch.equal(linear.weight, before)


def trained(**changes: Any) -> dict[str, Tensor]:
    module = Puzzle()
    optimizers = make_optimizers(module, replace(CONFIG, **changes))
    train(module, optimizers, torch.randint(7, (5, 6), generator=torch.Generator().manual_seed(3)))
    return {name: p.detach() for name, p in module.named_parameters()}


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ("adamw", {"optimizer": "adam_atan2"}, {"embed_tokens", "net.0", "lm_head", "q_head"}),
        ("adamw", {"optimizer": "muon"}, {"net.0", "net.1"}),
        ("adam_atan2", {"learning_rate": 0.02}, {"net.0", "lm_head", "q_head"}),
        ("adam_atan2", {"weight_decay": 0.0}, {"net.0", "lm_head", "q_head"}),
        ("adam_atan2", {"beta2": 0.99}, {"net.0", "lm_head", "q_head"}),
        ("adamw", {"beta2": 0.99}, {"net.0", "lm_head", "q_head"}),
        ("muon", {"beta2": 0.99}, {"embed_tokens", "lm_head", "q_head"}),
        ("muon", {"learning_rate": 0.02}, {"embed_tokens", "lm_head", "q_head"}),
        ("muon", {"muon_learning_rate": 0.03}, {"net.0", "net.1"}),
        ("muon", {"weight_decay": 0.0}, {"net.0", "net.1", "lm_head"}),
    ],
)
def test_every_choice_changes_what_is_trained(
    base: str, changes: dict[str, Any], expected: set[str]
) -> None:
    ours, theirs = trained(optimizer=base), trained(**({"optimizer": base} | changes))
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert {f"{name}.weight" for name in expected} <= changed
    assert not any(name.startswith("frozen") for name in changed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{"puzzle_learning_rate": 0.05}, {"puzzle_weight_decay": 0.9}])
def test_rate_and_decay_of_tables_are_their_own(kind: Any, changes: dict[str, float]) -> None:
    def table(**changes: Any) -> Tensor:
        module = Puzzle()
        optimizers = make_optimizers(module, replace(CONFIG, optimizer=kind, **changes))
        train(module, optimizers, [torch.arange(3)])
        return module.puzzle_emb.weight.detach()

    assert torch.equal(table(), table(learning_rate=0.1, weight_decay=0.0))
    assert not torch.equal(table(), table(**changes))


def test_muon_steps_are_orthogonal_and_scaled_by_shape() -> None:
    """Singular values of an update lie near its rate times sqrt(max(1, rows / columns))."""
    for shape, scale in (((8, 32), 1.0), ((32, 8), 2.0)):
        linear = nn.Linear(shape[1], shape[0], bias=False)
        before = linear.weight.detach().clone()
        config = replace(CONFIG, optimizer="muon", weight_decay=0.0)
        linear.weight.grad = torch.randn(shape) * torch.logspace(0, -1, shape[1])
        (optimizer,) = make_optimizers(linear, config)
        optimizer.step()
        values = torch.linalg.svdvals(before - linear.weight.detach()) / (0.02 * scale)
        assert 0.5 < values.min() and values.max() < 1.4


# AdamATan2


def slow_adam_atan2(
    start: float, grads: Sequence[float], lr: float, betas: tuple[float, float], decay: float
) -> float:
    """One number, in fp64, as `adam_math` of the originals' kernel reads."""
    p, m, v = start, 0.0, 0.0
    for number, g in enumerate(grads, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        scale = math.sqrt(v) / math.sqrt(1 - betas[1] ** number)
        step_size = lr / (1 - betas[0] ** number)
        p = p - lr * decay * p - step_size * math.atan2(m, scale)
    return p


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 0.1, "weight_decay": 0.5},
        {"lr": 0.1, "betas": (0.5, 0.99)},
        {"lr": 0.1, "betas": (0.0, 0.0), "weight_decay": 1.0},
    ],
)
def test_adam_atan2_follows_the_formula(settings: dict[str, Any]) -> None:
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in [(3, 4), (5,), ()]]
    before = [p.detach().clone() for p in params]
    optimizer = AdamATan2(params, **settings)
    history: list[list[Tensor]] = [[] for _ in params]
    for number in range(7):
        optimizer.zero_grad()
        for i, p in enumerate(params):
            if (number + i) % 3:  # each has steps without a gradient, that count for nothing
                p.grad = torch.randn_like(p) * 10.0 ** (number - 3)
                history[i].append(p.grad.flatten())
        optimizer.step()
    full = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.0} | settings
    for p, start, grads in zip(params, before, history, strict=True):
        expected = [
            slow_adam_atan2(first, column, full["lr"], full["betas"], full["weight_decay"])
            for first, column in zip(
                start.flatten().tolist(), torch.stack(grads).T.tolist(), strict=True
            )
        ]
        got = p.detach().flatten()
        torch.testing.assert_close(
            got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-13
        )
        assert not torch.equal(p, start)


def test_adam_atan2_in_fp32_is_close_to_the_formula() -> None:
    parameter, grads = nn.Parameter(torch.tensor([0.5])), torch.randn(50).tolist()
    optimizer = AdamATan2([parameter], lr=0.01, weight_decay=0.1)
    for grad in grads:
        parameter.grad = torch.tensor([grad])
        optimizer.step()
    expected = slow_adam_atan2(0.5, grads, 0.01, (0.9, 0.95), 0.1)
    assert parameter.item() == pytest.approx(expected, rel=1e-5)


def test_adam_atan2_knows_no_scale_and_no_epsilon() -> None:
    def update(scale: float) -> Tensor:
        torch.manual_seed(2)
        parameter = nn.Parameter(torch.zeros(6))
        optimizer = AdamATan2([parameter], lr=0.1)
        for _ in range(4):
            parameter.grad = torch.randn(6) * scale
            parameter.grad[0] = 0.0
            parameter.grad[1] = scale
            optimizer.step()
        return parameter.detach()

    assert update(1.0)[0] == 0
    agreed = [math.atan(1 - 0.9**n) / (1 - 0.9**n) for n in (1, 2, 3, 4)]  # 0.997 at first
    assert update(1.0)[1].item() == pytest.approx(-0.1 * sum(agreed), rel=1e-5)
    assert torch.equal(update(1.0), update(2.0**-40))  # AdamW's epsilon would swallow the second


# SignSGD


def make_table(num: int = 6) -> nn.Embedding:
    torch.manual_seed(4)
    return nn.Embedding(num, 3, sparse=True)


def test_sign_sgd_changes_the_rows_of_the_batch_by_the_sign_of_their_sums() -> None:
    table, rows = make_table(), torch.tensor([4, 1, 4, 1, 2])
    factors = torch.tensor([[1.0, 0, 2], [5, -1, 3], [-3, 0, 2], [-5, -1, -4], [0.001, -1000, 0]])
    before = table.weight.detach().clone()
    (table(rows) * factors).sum().backward()
    SignSGD(table.parameters(), lr=0.1, weight_decay=0.5).step()
    expected = before.clone()
    for row, sign in {1: [0, -1, -1], 2: [1, -1, 0], 4: [-1, 0, 1]}.items():
        expected[row] = before[row] * (1 - 0.1 * 0.5) - 0.1 * torch.tensor(sign)
    torch.testing.assert_close(table.weight.detach(), expected)
    assert torch.equal(table.weight[[0, 3, 5]], before[[0, 3, 5]])


def test_sign_sgd_sums_the_gradients_of_several_uses() -> None:
    table, before = make_table(), make_table().weight.detach()
    (table(torch.tensor([3])) * 2).sum().backward()
    (table(torch.tensor([3, 0])) * -1).sum().backward()
    SignSGD(table.parameters(), lr=0.1).step()
    expected = before.clone()
    expected[3] -= 0.1
    expected[0] += 0.1
    torch.testing.assert_close(table.weight.detach(), expected)


def test_sign_sgd_refuses_a_dense_gradient() -> None:
    table = nn.Embedding(6, 3)
    before = table.weight.detach().clone()
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"shape \(6, 3\) has a dense gradient.*sparse=True"):
        SignSGD(table.parameters()).step()
    assert torch.equal(table.weight, before)


BATCH = torch.tensor([0, 3, 3, 5, 0, 3, 1, 0])
LOST = 2.0**24
"""Sums with it depend on their order: 2**24 + 1 = 2**24 in fp32."""


def three_steps(rows: Tensor, factors: Tensor) -> Tensor:
    """Train a table on (N,) rows with gradients (3, N, 3); return it."""
    table = make_table()
    optimizer = SignSGD(table.parameters(), lr=0.1, weight_decay=0.3)
    for factor in factors:
        (table(rows) * factor).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return table.weight.detach()


def make_factors() -> Tensor:
    torch.manual_seed(5)
    factors = torch.randn(3, 8, 3)
    factors[:, [1, 2, 5], 0] = torch.tensor([LOST, 1.0, -LOST])  # row 3: 0, backwards 1
    factors[:, [0, 4, 7], 0] = torch.tensor([1.0, LOST, -LOST])  # row 0: 0, summed by process 1
    return factors


def table_on_two(folder: Path) -> None:
    rank, num = dist.get_rank(), dist.get_world_size()
    own = slice(4 * rank, 4 * rank + 4)
    table = three_steps(BATCH[own], make_factors()[:, own])
    save_file({"table": table, "num": torch.tensor(num)}, folder / f"{rank}.safetensors")


def test_one_process_and_two_train_a_table_bit_for_bit(tmp_path: Path) -> None:
    expected = three_steps(BATCH, make_factors())
    on_two_processes(table_on_two, tmp_path)
    for rank in (0, 1):
        saved = load_file(tmp_path / f"{rank}.safetensors")
        assert saved["num"] == 2
        assert torch.equal(saved["table"], expected)
    assert not torch.equal(three_steps(BATCH[:4], make_factors()[:, :4]), expected)
    backwards = three_steps(BATCH.flip(0), make_factors().flip(1))
    assert not torch.equal(backwards, expected)  # the order of the sums shows


# Moving average


def test_moving_average_follows_the_formula_and_leaves_the_weights_alone() -> None:
    module = nn.Linear(2, 2)
    ema = make_ema(module, 0.9)
    seen, expected = [], torch.zeros(2, 2)
    for number in range(4):
        with torch.no_grad():
            module.weight.copy_(torch.randn(2, 2))
        seen.append(module.weight.detach().clone())
        ema.update_parameters(module)
        expected = seen[-1] if number == 0 else 0.9 * expected + 0.1 * seen[-1]
        assert torch.equal(module.weight, seen[-1])
    torch.testing.assert_close(ema.module.weight.detach(), expected)
    assert ema.module.weight.data_ptr() != module.weight.data_ptr()


def test_moving_average_holds_only_what_it_was_given() -> None:
    base, core = nn.Linear(3, 3), nn.Linear(3, 2)
    model = nn.ModuleDict({"base": base, "core": core})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ema = make_ema(core, 0.5)
    assert [p.shape for p in ema.module.parameters()] == [p.shape for p in core.parameters()]
    ema.update_parameters(core)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_no_decay_of_the_average_means_the_latest_weights() -> None:
    module = nn.Linear(2, 2)
    ema = make_ema(module, 0.0)
    for _ in range(3):
        with torch.no_grad():
            module.weight.add_(1)
        ema.update_parameters(module)
    torch.testing.assert_close(ema.module.weight, module.weight)


# State

ADAM = ("step", "exp_avg", "exp_avg_sq")
STATE = {
    "adamw": {f"0/{i}/{name}" for i in range(7) for name in ADAM},
    "adam_atan2": {f"0/{i}/{name}" for i in range(7) for name in ADAM},
    "muon": {f"0/{i}/{name}" for i in range(5) for name in ADAM}
    | {f"1/{i}/momentum_buffer" for i in range(2)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through_file", [False, True])
def test_loaded_optimizers_continue_bit_for_bit(
    kind: Any, through_file: bool, tmp_path: Path
) -> None:
    batches = torch.randint(7, (6, 5))
    config = replace(CONFIG, optimizer=kind)
    module = Puzzle()
    optimizers = make_optimizers(module, config)
    train(module, optimizers, batches[:3])

    tensors = optimizer_tensors(optimizers)
    assert set(tensors) == STATE[kind]
    if through_file:
        save_file(tensors, tmp_path / "optimizer.safetensors")
        tensors = load_file(tmp_path / "optimizer.safetensors")
    twin, fresh = copy.deepcopy(module), copy.deepcopy(module)
    others = make_optimizers(twin, config)
    load_optimizer_tensors(others, tensors)

    train(module, optimizers, batches[3:])
    train(twin, others, batches[3:])
    for ours, theirs in zip(twin.parameters(), module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = optimizer_tensors(others), optimizer_tensors(optimizers)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype

    train(fresh, make_optimizers(fresh, config), batches[3:])
    assert not torch.equal(fresh.net[0].weight, module.net[0].weight)  # the state matters
    assert not torch.equal(fresh.lm_head.weight, module.lm_head.weight)


def test_loading_copies() -> None:
    module = Puzzle()
    optimizers = make_optimizers(module, CONFIG)
    train(module, optimizers, torch.randint(7, (2, 5)))
    tensors = optimizer_tensors(optimizers)
    before = {name: value.clone() for name, value in tensors.items()}
    twin = copy.deepcopy(module)
    others = make_optimizers(twin, CONFIG)
    load_optimizer_tensors(others, tensors)
    train(twin, others, torch.randint(7, (2, 5)))
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())


@pytest.mark.parametrize("kind", KINDS)
def test_loading_keeps_the_rates_and_groups_of_the_new_optimizers(kind: Any) -> None:
    module = Puzzle()
    optimizers = make_optimizers(module, replace(CONFIG, optimizer=kind))
    train(module, optimizers, torch.randint(7, (1, 5)))
    twin = copy.deepcopy(module)
    config = replace(CONFIG, optimizer=kind, learning_rate=0.03, puzzle_learning_rate=0.04)
    others = make_optimizers(twin, config)
    expected = groups_of(twin, others)
    load_optimizer_tensors(others, optimizer_tensors(optimizers))
    assert groups_of(twin, others) == expected != groups_of(module, optimizers)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_optimizers_have_no_state(kind: Any) -> None:
    optimizers = make_optimizers(Puzzle(), replace(CONFIG, optimizer=kind))
    assert optimizer_tensors(optimizers) == {}
    load_optimizer_tensors(optimizers, {})
    assert optimizer_tensors(optimizers) == {}
