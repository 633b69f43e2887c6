"""Optimizer groups, the moving average, and the optimizer's state as tensors."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latent_reason.optim import (
    load_optimizer_tensors,
    make_ema,
    make_optimizer,
    optimizer_tensors,
)


def make_module() -> nn.Module:
    """Return a module with matrices, vectors, a buffer and a frozen part."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(2, 2))
    module[3].requires_grad_(False)
    return module


def train(module: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor]) -> None:
    for batch in batches:
        module(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_only_trainable_matrices_decay() -> None:
    module = make_module()
    optimizer = make_optimizer(module, 0.01, 0.5)
    names = {parameter: name for name, parameter in module.named_parameters()}
    groups = [
        (group["weight_decay"], [names[p] for p in group["params"]], group["lr"])
        for group in optimizer.param_groups
    ]
    assert groups == [
        (0.5, ["0.weight", "2.weight"], 0.01),
        (0.0, ["0.bias", "1.weight", "1.bias", "2.bias"], 0.01),
    ]


def test_decay_shrinks_by_rate_times_decay_where_the_gradient_is_zero() -> None:
    module = make_module()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = make_optimizer(module, 0.01, 0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        kept = 1 - 0.01 * 0.5 if name in ("0.weight", "2.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept)


def test_a_module_without_vectors_can_be_optimised() -> None:
    linear = nn.Linear(2, 2, bias=False)
    before = linear.weight.detach().clone()
    train(linear, make_optimizer(linear, 0.01, 0.0), [torch.ones(1, 2)])
    assert not torch.equal(linear.weight, before)


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


@pytest.mark.parametrize("through_file", [False, True])
def test_loaded_optimizer_continues_bit_for_bit(through_file: bool, tmp_path: Path) -> None:
    batches = [torch.randn(5, 3) for _ in range(6)]
    module = make_module()
    optimizer = make_optimizer(module, 0.01, 0.1)
    train(module, optimizer, batches[:3])

    tensors = optimizer_tensors(optimizer)
    assert set(tensors) == {f"{i}/{k}" for i in range(6) for k in ("step", "exp_avg", "exp_avg_sq")}
    if through_file:
        save_file(tensors, tmp_path / "optimizer.safetensors")
        tensors = load_file(tmp_path / "optimizer.safetensors")
    twin = copy.deepcopy(module)
    other = make_optimizer(twin, 0.01, 0.1)
    load_optimizer_tensors(other, tensors)

    train(module, optimizer, batches[3:])
    train(twin, other, batches[3:])
    for ours, theirs in zip(twin.state_dict().values(), module.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = optimizer_tensors(other), optimizer_tensors(optimizer)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]) and value.dtype == theirs[name].dtype

    fresh = copy.deepcopy(module)
    train(fresh, make_optimizer(fresh, 0.01, 0.1), batches[:1])
    train(module, optimizer, batches[:1])
    assert not torch.equal(fresh[0].weight, module[0].weight)  # the state matters


def test_loading_keeps_the_rates_and_groups_of_the_new_optimizer() -> None:
    module = make_module()
    optimizer = make_optimizer(module, 0.01, 0.1)
    train(module, optimizer, [torch.randn(5, 3)])
    other = make_optimizer(copy.deepcopy(module), 0.03, 0.2)
    load_optimizer_tensors(other, optimizer_tensors(optimizer))
    assert [(g["lr"], g["weight_decay"]) for g in other.param_groups] == [(0.03, 0.2), (0.03, 0.0)]


def test_a_fresh_optimizer_has_no_state() -> None:
    optimizer = make_optimizer(make_module(), 0.01, 0.1)
    assert optimizer_tensors(optimizer) == {}
    load_optimizer_tensors(optimizer, {})
    assert optimizer_tensors(optimizer) == {}
