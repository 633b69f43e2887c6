"""Options of the training dynamics: cycles that grow, chains that compete, normalised SwiGLU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.data.sudoku import Sudoku
from latent_reason.errors import ConfigError
from latent_reason.layers import SwiGLU, rms_norm
from latent_reason.losses import answer_losses, exactly_right, halt_loss
from latent_reason.puzzles.model import PuzzleModel
from latent_reason.train_config import TrainConfig

PUZZLE = Sudoku(2, 2)
SMALL = ReasonerConfig(
    hidden_size=16, num_heads=1, width_multiple=8, L_layers=1, L_cycles=2, H_cycles=3,
    mixer="groups", positions="none", residual_init="normal",
)  # fmt: skip


def make_model(reasoner: ReasonerConfig = SMALL, **changes: Any) -> PuzzleModel:
    torch.manual_seed(1)
    sizes = {"vocab_size": PUZZLE.vocab_size, "num_cells": PUZZLE.num_cells}
    config = PuzzleModelConfig(reasoner=reasoner, symbol_states=True, **sizes, **changes)
    model = PuzzleModel(config, PUZZLE.groups())
    torch.nn.init.normal_(model.q_head.weight)
    return model


@pytest.fixture(scope="module")
def grids() -> tuple[Tensor, Tensor]:
    return PUZZLE.generate(4, seed=0)


# Cycles that grow


def test_cycles_grow_from_one_to_those_of_the_model() -> None:
    train = TrainConfig(cycles_curriculum=(0.2, 0.6))
    found = [train.cycles_at(progress / 10, SMALL) for progress in range(11)]
    assert found == [(1, 1)] * 4 + [(2, 1)] * 2 + [(3, 2)] * 5
    assert TrainConfig().cycles_at(0.0, SMALL) == (3, 2)
    with pytest.raises(ConfigError, match="cycles_curriculum"):
        TrainConfig(cycles_curriculum=(0.6, 0.2))


def test_fewer_cycles_are_those_of_a_shallower_model(grids: tuple[Tensor, Tensor]) -> None:
    deep, shallow = make_model(), make_model(replace(SMALL, H_cycles=2, L_cycles=1))
    carry = deep.initial_carry(4, PUZZLE.num_cells)
    assert torch.equal(deep(carry, grids[0], cycles=(2, 1)).logits, shallow(carry, grids[0]).logits)
    assert not torch.equal(deep(carry, grids[0]).logits, shallow(carry, grids[0]).logits)


# Chains


def test_the_best_chain_takes_all(grids: tuple[Tensor, Tensor]) -> None:
    inputs, labels = grids
    one, four = make_model(), make_model(num_chains=4)
    carry = four.initial_carry(4, PUZZLE.num_cells)
    carry.halted[:] = False
    carry.z_L = torch.randn_like(carry.z_L)
    length = carry.z_L.shape[1] // 4
    singles = []
    for chain in range(4):
        own = one.initial_carry(4, PUZZLE.num_cells)
        own.halted[:] = False
        own.z_L = carry.z_L[:, chain * length : (chain + 1) * length]
        singles.append(one(own, inputs))
    losses = torch.stack([answer_losses(single.logits, labels) for single in singles])
    winners = losses.argmin(dim=0).tolist()
    assert len({*winners}) > 1, "choose another seed: one chain wins everywhere"

    output = four(carry, inputs, labels)
    for b, winner in enumerate(winners):
        best = singles[winner]
        torch.testing.assert_close(output.logits[b], best.logits[b], rtol=0, atol=1e-5)
        for chain, single in enumerate(singles):
            part = slice(chain * length, (chain + 1) * length)
            near = {"rtol": 0, "atol": 1e-5}
            torch.testing.assert_close(output.carry.z_H[b, part], best.carry.z_H[b], **near)
            torch.testing.assert_close(output.carry.z_L[b, part], single.carry.z_L[b], **near)
    q_halt_logits = torch.stack([single.q_halt_logits for single in singles])
    right = torch.stack([exactly_right(single.logits, labels) for single in singles])
    expected = losses.amin(dim=0).mean() + 0.5 * halt_loss(q_halt_logits, right)
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-5)

    chosen = four(carry, inputs).logits  # without labels the halting head chooses
    for b, winner in enumerate(q_halt_logits.argmax(dim=0).tolist()):
        torch.testing.assert_close(chosen[b], singles[winner].logits[b], rtol=0, atol=1e-5)


def test_chains_start_apart(grids: tuple[Tensor, Tensor]) -> None:
    model = make_model(num_chains=3)
    carry = model(model.initial_carry(4, PUZZLE.num_cells), grids[0]).carry
    first, second, third = carry.z_L.chunk(3, dim=1)
    assert (first - second).abs().max() > 0.05 < (second - third).abs().max()


# Normalised SwiGLU


def test_norm_swiglu_is_the_formula() -> None:
    net, x = SwiGLU(16, replace(SMALL, norm_swiglu=True)), torch.randn(3, 16)
    gate, up = (x @ net.gate_up_proj.weight.T).chunk(2, dim=-1)
    expected = (gate.sigmoid() * rms_norm(gate * up, 1e-5)) @ net.down_proj.weight.T
    torch.testing.assert_close(net(x), expected)
