"""Halting: what lives between refinement steps, when an example ends, how its row is refilled.

Every rank does the same work in every step: a halted batch row is refilled with the next example
instead of leaving the batch, so no rank ever waits for another (an early exit would deadlock).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor


@dataclass
class Carry:
    """All that lives between two refinement steps: an argument and a result, not part of a model.

    z_H and z_L are (B, S, D) fp32 without graph; refinement_steps (B,) int64 counts the steps an
    example has had; halted (B,) bool marks batch rows to refill before the next step; data holds
    what is in each row, here the position of the example in the data order.
    """

    z_H: Tensor
    z_L: Tensor
    refinement_steps: Tensor
    halted: Tensor
    data: dict[str, Tensor] = field(default_factory=dict)

    def after_step(self, z_H: Tensor, z_L: Tensor) -> Carry:
        """Return the carry after one more refinement step that gave z_H and z_L (B, S, D)."""
        states = {"z_H": z_H.detach().float(), "z_L": z_L.detach().float()}
        return replace(self, **states, refinement_steps=self.refinement_steps + 1)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as a flat dictionary, for a checkpoint."""
        own = {"z_H": self.z_H, "z_L": self.z_L, "halted": self.halted}
        own["refinement_steps"] = self.refinement_steps
        return own | {f"data.{key}": value for key, value in self.data.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Carry:
        """Undo `tensors`."""
        own = {k: v for k, v in tensors.items() if not k.startswith("data.")}
        data = {k.removeprefix("data."): v for k, v in tensors.items() if k.startswith("data.")}
        return cls(**own, data=data)


def fresh_carry(z_H: Tensor, z_L: Tensor) -> Carry:
    """Return a carry of batch rows with states (B, S, D) that are all halted: to be refilled."""
    steps = torch.zeros(len(z_H), dtype=torch.long, device=z_H.device)
    return Carry(z_H, z_L, steps, torch.ones_like(steps, dtype=torch.bool))


def empty_carry(num: int, device: torch.device | str = "cpu") -> Carry:
    """Return a carry of one zero each, for models that finish an example in one step.

    Not of nothing: accelerate cannot gather empty tensors of several GPUs.
    """
    nothing = torch.zeros(num, 1, 1, device=device)
    return fresh_carry(nothing, nothing)


def reset_halted(carry: Carry, z_H: Tensor, z_L: Tensor) -> Carry:
    """Return the carry with halted batch rows at initial states and zero refinement steps.

    Args:
        carry: of B batch rows.
        z_H: initial states, (D,) or (S, D).
        z_L: likewise.
    """
    fresh = carry.halted[:, None, None]
    return Carry(
        z_H=torch.where(fresh, z_H.to(carry.z_H.dtype), carry.z_H),
        z_L=torch.where(fresh, z_L.to(carry.z_L.dtype), carry.z_L),
        refinement_steps=torch.where(carry.halted, 0, carry.refinement_steps),
        halted=torch.zeros_like(carry.halted),
        data=carry.data,
    )


def refill(carry: Carry, fresh: dict[str, Tensor]) -> Carry:
    """Return the carry with fresh data, (B, ...) each, in its halted batch rows."""
    data = {}
    for key, value in fresh.items():
        halted = carry.halted.view(-1, *[1] * (value.ndim - 1))
        data[key] = torch.where(halted, value, carry.data[key]) if key in carry.data else value
    return replace(carry, data=data)


def minimum_steps(num: int, limit: int, exploration_prob: float, seed: int, step: int) -> Tensor:
    """Draw the exploration minimum of refinement steps for the `num` rows of a global batch.

    Drawn anew in every step, as the originals do. A pure function of (seed, step): the same on
    every rank and after a resume.

    Returns:
        (num,) int64: uniform in 2..limit with probability `exploration_prob`, else 0.

    Source: HRM, arXiv 2506.21734, section 2 (Adaptive computational time).
    """
    # numpy, since torch's CPU generator reads only the low 32 bits of a seed.
    generator = np.random.default_rng((seed, step))
    explore = generator.random(num) < exploration_prob
    drawn = generator.integers(min(2, limit), limit, num, np.int64, endpoint=True)
    return torch.from_numpy(np.where(explore, drawn, 0))


def should_halt(stop: Tensor, refinement_steps: Tensor, limit: int, minimum: Tensor) -> Tensor:
    """Return (B,) bool: at the limit, or the halting head says stop and the minimum is reached.

    Args:
        stop: (B,) bool, what the halting head says.
        refinement_steps: (B,) int64, steps the example has had.
        limit: the limit.
        minimum: (B,) int64 from `minimum_steps`.
    """
    stop = stop & (refinement_steps >= minimum.to(refinement_steps.device))
    return (refinement_steps >= limit) | stop
