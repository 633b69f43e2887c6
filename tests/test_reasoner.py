"""What holds of a whole reasoner: padding, initial states, the start from zero residuals."""

from __future__ import annotations

import pytest
import torch
from twin import KINDS, LENGTH, MASK, MIXERS, NUM, SIZE, make_config, make_states, where_of

from latent_reason.layers import rms_norm
from latent_reason.optim import make_optimizers
from latent_reason.reasoner import Reasoner
from latent_reason.train_config import TrainConfig


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("gradient", ["one_step", "full"])
def test_inputs_and_initial_states_are_not_modified(gradient: str, mixer: str) -> None:
    config = make_config(gradient=gradient, mixer=mixer)
    reasoner, states = Reasoner(config, LENGTH), [state.detach() for state in make_states()]
    before = [state.clone() for state in (*states, reasoner.H_init, reasoner.L_init)]
    reasoner(*states, where_of(config))
    z_H, z_L = reasoner.initial_states(NUM, LENGTH)
    reasoner(states[0], z_H, z_L, where_of(config))
    after = [*states, reasoner.H_init, reasoner.L_init]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_padded_positions_have_no_influence(kind: str) -> None:
    config = make_config(kind, gradient="full")
    reasoner, states = Reasoner(config), make_states()
    changed = [torch.where(MASK[..., None] == 1, s, s * 30 + 7) for s in states]
    real = MASK.bool()
    outputs, others = (reasoner(*given, where_of(config)) for given in (states, changed))
    for ours, theirs in zip(outputs, others, strict=True):
        torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-6)
    (of_x,) = torch.autograd.grad(
        outputs[0][real].square().sum() + outputs[1][real].sum(), states[:1]
    )
    assert (of_x[~real] == 0).all() and (of_x[real] != 0).any(dim=-1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_left_right_or_absent_gives_the_same_slots(kind: str) -> None:
    """Prompts of 4 tokens followed by 2 slots, padded by 3 in any way."""
    config = make_config(kind, positions="rope")
    reasoner, tokens, slots = Reasoner(config), torch.randn(2, 4, SIZE), torch.randn(2, 2, SIZE)
    padding, outputs = torch.randn(2, 3, SIZE), []
    for parts in ([tokens], [padding, tokens], [tokens, padding]):
        mask = torch.cat([torch.full(p.shape[:2], int(p is not padding)) for p in parts], dim=1)
        mask = torch.cat((mask, torch.ones(2, 2, dtype=torch.long)), dim=1)
        x = torch.cat((*parts, slots), dim=1)
        z_H, z_L = reasoner.initial_states(*x.shape[:2])
        outputs.append(reasoner(x, z_H, z_L, where_of(config, mask))[0][:, -2:])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mixer", MIXERS)
def test_fresh_net_with_zero_residuals_only_normalises(mixer: str) -> None:
    config = make_config("hrm", mixer=mixer, residual_init="zero")
    reasoner, (x, _, z_L) = Reasoner(config, LENGTH), make_states()
    for net, num_layers in ((reasoner.L_level, 2), (reasoner.H_level, 1)):
        expected = x + z_L
        for _ in range(num_layers):
            if mixer == "mlp":
                expected = rms_norm(expected.mT, config.norm_eps).mT
            expected = rms_norm(expected, config.norm_eps)
        updated = net(x, z_L, where_of(config))
        torch.testing.assert_close(updated, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("gradient", ["one_step", "last_cycle"])
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_residuals_come_alive_after_one_step(kind: str, mixer: str, gradient: str) -> None:
    config = make_config(kind, mixer=mixer, gradient=gradient, residual_init="zero")
    reasoner, target = Reasoner(config, LENGTH), torch.randn(NUM, LENGTH, SIZE)
    train = TrainConfig(learning_rate=1e-3, weight_decay=0.0)
    (optimizer,) = make_optimizers(reasoner, train)
    alive = []
    for _ in range(2):
        optimizer.zero_grad()
        z_H, _ = reasoner(*make_states(), where_of(config))
        (z_H - target).square().mean().backward()
        grads = {name: p.grad for name, p in reasoner.named_parameters()}
        assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
        alive.append({name for name, grad in grads.items() if grad is not None and grad.any()})
        optimizer.step()
    outputs = {name for name in grads if "o_proj" in name or "down_proj" in name}
    assert alive == [outputs, set(grads)]


def test_kinds_share_one_net_or_hold_two() -> None:
    trm, hrm = Reasoner(make_config("trm")), Reasoner(make_config("hrm"))
    assert trm.H_level is trm.L_level and hrm.H_level is not hrm.L_level
    sizes = [sum(p.numel() for p in reasoner.parameters()) for reasoner in (trm, hrm)]
    assert sizes[1] == sizes[0] * 3 // 2


def test_initial_states_are_saved_vectors_alike_at_every_position() -> None:
    reasoner = Reasoner(make_config())
    state = reasoner.state_dict()
    assert {"H_init", "L_init"} == set(state) - {name for name, _ in reasoner.named_parameters()}
    for name, z in zip(("H_init", "L_init"), reasoner.initial_states(2, 7), strict=True):
        assert z.shape == (2, 7, SIZE) and z.dtype == torch.float32
        assert torch.equal(z, state[name].repeat(2, 7, 1)) and state[name].abs().max() <= 2.28
    assert not torch.equal(state["H_init"], state["L_init"])
