"""When an example halts, how its batch row is reset, and how the carry becomes tensors and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latent_reason.core import ReasonerOutput
from latent_reason.halting import Carry, minimum_steps, refill, reset_halted, should_halt


def make_carry(num: int = 4, length: int = 3, size: int = 2) -> Carry:
    return Carry(
        z_H=torch.randn(num, length, size),
        z_L=torch.randn(num, length, size),
        refinement_steps=torch.arange(1, num + 1),
        halted=torch.arange(num) % 2 == 1,
        data={"position": torch.arange(num) + 10, "z_H": torch.ones(num)},
    )


@pytest.mark.parametrize(
    ("stop", "refinement_steps", "minimum", "expected"),
    [
        (False, 1, 0, False),
        (True, 1, 0, True),
        (True, 1, 2, False),
        (True, 2, 2, True),
        (True, 3, 4, False),
        (False, 2, 2, False),
        (False, 4, 0, True),
        (False, 4, 4, True),
        (True, 4, 4, True),
        (False, 5, 0, True),  # a curriculum that is resumed earlier may lower the limit
    ],
)
def test_should_halt(stop: bool, refinement_steps: int, minimum: int, expected: bool) -> None:
    halted = should_halt(
        torch.tensor([stop]), torch.tensor([refinement_steps]), 4, torch.tensor([minimum])
    )
    assert halted.dtype == torch.bool and halted.tolist() == [expected]


def test_a_reasoner_says_stop_above_zero_only() -> None:
    logits = torch.tensor([-1.0, 0.0, 1e-6, 3.0])
    none = torch.zeros(0)
    output = ReasonerOutput(None, none, logits, none, make_carry(), None)
    assert output.stop.tolist() == [False, False, True, True]


def test_with_a_limit_of_one_every_example_halts() -> None:
    for prob in (0.0, 1.0):
        minimum = minimum_steps(50, 1, prob, seed=0, step=0)
        assert minimum.max() <= 1
        steps = torch.ones(50, dtype=torch.long)
        assert should_halt(torch.zeros(50, dtype=torch.bool), steps, 1, minimum).all()


@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 10**7),
)
def test_minimum_steps_is_a_pure_function_in_range(
    num: int, limit: int, prob: float, seed: int, step: int
) -> None:
    before = torch.get_rng_state()
    drawn = minimum_steps(num, limit, prob, seed, step)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(minimum_steps(num, limit, prob, seed, step), drawn)
    assert drawn.shape == (num,) and drawn.dtype == torch.int64
    explored = drawn[drawn != 0]
    assert ((explored >= min(2, limit)) & (explored <= limit)).all()


def test_minimum_steps_depends_on_seed_and_step() -> None:
    draws = {
        (seed, step): tuple(minimum_steps(64, 16, 0.5, seed, step).tolist())
        for seed in (0, 1, 2, 4096, 2**32 - 1)
        for step in (0, 1, 2, 3, 1000)
    }
    assert len(set(draws.values())) == len(draws)


def test_minimum_steps_is_uniform_with_the_given_probability() -> None:
    num, limit, prob = 100, 5, 0.3
    drawn = torch.cat([minimum_steps(num, limit, prob, 7, step) for step in range(400)])
    counts = torch.bincount(drawn, minlength=limit + 1) / len(drawn)
    assert counts[0].item() == pytest.approx(1 - prob, abs=0.01)
    assert counts[1] == 0
    torch.testing.assert_close(counts[2:], torch.full((4,), prob / 4), rtol=0, atol=0.006)
    by_row = drawn.view(400, num).gt(0).float().mean(dim=0)  # no row is favoured
    assert by_row.min() > 0.2 and by_row.max() < 0.4
    neighbours = drawn.view(400, num).gt(0).float()
    together = (neighbours[1:] * neighbours[:-1]).mean().item()
    assert together == pytest.approx(prob**2, abs=0.01)  # steps are independent
    assert minimum_steps(1000, 5, 0.0, 7, 0).eq(0).all()
    assert minimum_steps(1000, 5, 1.0, 7, 0).ge(2).all()


def test_slices_of_ranks_make_up_the_draw_of_one_process() -> None:
    stop, steps = torch.randn(8) > 0, torch.randint(1, 6, (8,))
    whole = should_halt(stop, steps, 5, minimum_steps(8, 5, 0.8, 3, 11))
    for world in (1, 2, 4, 8):
        ranks = [slice(r * 8 // world, (r + 1) * 8 // world) for r in range(world)]
        parts = [
            should_halt(stop[at], steps[at], 5, minimum_steps(8, 5, 0.8, 3, 11)[at]) for at in ranks
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_reset_touches_exactly_the_halted_rows() -> None:
    carry, H_init, L_init = make_carry(), torch.randn(2), torch.randn(2)
    before = {name: value.clone() for name, value in carry.tensors().items()}
    fresh = reset_halted(carry, H_init, L_init)
    for z, old, init in ((fresh.z_H, carry.z_H, H_init), (fresh.z_L, carry.z_L, L_init)):
        assert torch.equal(z[1::2], init.expand(2, 3, 2)) and torch.equal(z[::2], old[::2])
        assert z.dtype == torch.float32
    assert fresh.refinement_steps.tolist() == [1, 0, 3, 0]
    assert not fresh.halted.any() and fresh.data is carry.data
    assert all(torch.equal(before[name], value) for name, value in carry.tensors().items())
    again = reset_halted(fresh, H_init * 0, L_init * 0)
    assert torch.equal(again.z_H, fresh.z_H) and torch.equal(again.z_L, fresh.z_L)


def test_reset_keeps_the_dtype_of_the_states() -> None:
    carry = make_carry()
    fresh = reset_halted(carry, torch.randn(2).bfloat16(), torch.randn(2).double())
    assert fresh.z_H.dtype == fresh.z_L.dtype == torch.float32


def test_refill_gives_fresh_data_to_exactly_the_halted_rows() -> None:
    carry = make_carry()
    carry.data["grid"] = torch.zeros(4, 2, 3)
    before = {name: value.clone() for name, value in carry.tensors().items()}
    position, grid = torch.arange(4) + 100, torch.arange(24.0).view(4, 2, 3)
    filled = refill(carry, {"position": position, "grid": grid})
    assert filled.data.keys() == {"position", "grid"}
    assert filled.data["position"].tolist() == [10, 101, 12, 103]
    assert filled.data["position"].dtype == torch.int64
    assert torch.equal(filled.data["grid"][1::2], grid[1::2])
    assert filled.data["grid"][::2].eq(0).all()
    for name, value in carry.tensors().items():
        assert torch.equal(before[name], value), f"the argument's {name} was changed"
        if not name.startswith("data."):
            assert torch.equal(filled.tensors()[name], value), name


def test_the_first_refill_takes_everything() -> None:
    carry = make_carry()
    carry.data = {}
    position = torch.arange(4)
    assert torch.equal(refill(carry, {"position": position}).data["position"], position)
    assert carry.data == {}


def test_carry_becomes_tensors_and_back() -> None:
    carry = make_carry()
    tensors = carry.tensors()
    assert set(tensors) == {
        "z_H", "z_L", "refinement_steps", "halted", "data.position", "data.z_H"
    }  # fmt: skip
    assert all(isinstance(value, Tensor) for value in tensors.values())
    back = Carry.from_tensors(tensors)
    assert back.data.keys() == carry.data.keys()
    for name, value in back.tensors().items():
        assert torch.equal(value, tensors[name]) and value.dtype == tensors[name].dtype
    empty = Carry(carry.z_H, carry.z_L, carry.refinement_steps, carry.halted)
    assert Carry.from_tensors(empty.tensors()).data == {}
