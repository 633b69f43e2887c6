"""A slow twin of the recursion, written from the papers' pseudocode, and the small cases it is for.

Not a test itself: `test_recursion.py` and `test_reasoner.py` import it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latent_reason.config import ReasonerConfig
from latent_reason.layers import Positions, position_ids
from latent_reason.reasoner import Reasoner

GRADIENTS = ("one_step", "last_cycle", "k_cycles", "full")
KINDS = ("trm", "hrm")
MIXERS = ("attention", "mlp")
# The left example is whole, the others are padded on the right and on the left.
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
NUM, LENGTH, SIZE = 3, 5, 16


def make_config(kind: str = "trm", **changes: Any) -> ReasonerConfig:
    values: dict[str, Any] = {
        "kind": kind,
        "hidden_size": SIZE,
        "num_heads": 2,
        "expansion": 2.0,
        "L_layers": 2,
        "H_layers": 1 if kind == "hrm" else 0,
        "L_cycles": 2,
        "H_cycles": 3,
        "residual_init": "normal",
        "rope_theta": 50.0,
    }
    return ReasonerConfig(**(values | with_cycles(changes)))


def with_cycles(changes: dict[str, Any]) -> dict[str, Any]:
    """Return changes that set gradient with two gradient_cycles for k_cycles, or as they set it."""
    if "gradient" not in changes:
        return changes
    return {"gradient_cycles": 2 if changes["gradient"] == "k_cycles" else 1} | changes


def make_states() -> list[Tensor]:
    """Return x, z_H, z_L (B, S, D), leaves of the graph."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(NUM, LENGTH, SIZE, generator=generator).requires_grad_() for _ in range(3)]


def where_of(config: ReasonerConfig, mask: Tensor = MASK) -> Positions:
    return Positions(config, position_ids(mask), mask)


@dataclass
class Twin:
    """TRM and HRM in fp64, one example and one head at a time, nothing shared with the library."""

    weights: dict[str, Tensor]
    config: ReasonerConfig
    mask: Tensor

    def rms(self, x: Tensor) -> Tensor:
        return x / ((x * x).sum(-1, keepdim=True) / x.shape[-1] + self.config.norm_eps) ** 0.5

    def swiglu(self, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        width = len(gate_up) // 2
        gate, up = x @ gate_up[:width].T, x @ gate_up[width:].T
        return (gate / (1 + torch.exp(-gate)) * up) @ down.T

    def rotate(self, rows: Tensor, places: list[int]) -> Tensor:
        """Turn each pair (i, i + half) of (S, width), as a complex number, by its angle."""
        half = rows.shape[1] // 2
        angles = [[p * self.config.rope_theta ** (-i / half) for i in range(half)] for p in places]
        turn = torch.exp(1j * torch.tensor(angles, dtype=torch.float64))
        turned = torch.complex(rows[:, :half], rows[:, half:]) * turn
        return torch.cat((turned.real, turned.imag), dim=1)

    def attention(self, x: Tensor, present: list[int], qkv: Tensor, out: Tensor) -> Tensor:
        """Let every position of one example (S, D) attend to the present ones."""
        size, width = x.shape[1], x.shape[1] // self.config.num_heads
        places = [max(0, sum(present[: s + 1]) - 1) for s in range(len(present))]
        keys = [s for s in range(len(present)) if present[s]]
        heads = []
        for start in range(0, size, width):
            q, k, v = (x @ qkv[at + start : at + start + width].T for at in (0, size, 2 * size))
            if self.config.positions == "rope":
                q, k = self.rotate(q, places), self.rotate(k, places)
            score = torch.exp(q @ k[keys].T / math.sqrt(width))
            heads.append(score / score.sum(dim=1, keepdim=True) @ v[keys])
        return torch.cat(heads, dim=1) @ out.T

    def net(self, level: str, num_layers: int, *states: Tensor) -> Tensor:
        h = sum(states[1:], start=states[0])
        for layer in range(num_layers):
            w = {
                name.removeprefix(f"{level}.layers.{layer}."): weight
                for name, weight in self.weights.items()
                if name.startswith(f"{level}.layers.{layer}.")
            }
            if self.config.mixer == "attention":
                qkv, out = w["self_attn.qkv_proj.weight"], w["self_attn.o_proj.weight"]
                mixed = [
                    self.attention(h[b], self.mask[b].tolist(), qkv, out) for b in range(len(h))
                ]
                h = self.rms(h + torch.stack(mixed))
            else:
                gate_up = w["mixer.mlp_t.gate_up_proj.weight"]
                h = h.transpose(1, 2)
                h = self.rms(h + self.swiglu(h, gate_up, w["mixer.mlp_t.down_proj.weight"]))
                h = h.transpose(1, 2)
            h = self.rms(
                h + self.swiglu(h, w["mlp.gate_up_proj.weight"], w["mlp.down_proj.weight"])
            )
        return h

    def L_net(self, *states: Tensor) -> Tensor:
        return self.net("L_level", self.config.L_layers, *states)

    def H_net(self, *states: Tensor) -> Tensor:
        if self.config.kind == "trm":
            return self.L_net(*states)
        return self.net("_H_level", self.config.H_layers, *states)

    def one_step(self, x: Tensor, z_H: Tensor, z_L: Tensor) -> tuple[Tensor, Tensor]:
        """HRM, arXiv 2506.21734, figure 4 (their N is H_cycles, their T is L_cycles)."""
        N, T = self.config.H_cycles, self.config.L_cycles
        with torch.no_grad():
            for i in range(N * T - 1):
                z_L = self.L_net(z_L, z_H, x)
                if (i + 1) % T == 0:
                    z_H = self.H_net(z_H, z_L)
        z_L = self.L_net(z_L, z_H, x)
        z_H = self.H_net(z_H, z_L)
        return z_H, z_L

    def deep_recursion(self, x: Tensor, z_H: Tensor, z_L: Tensor) -> tuple[Tensor, Tensor]:
        """TRM, arXiv 2510.04871, figure 3 (their T is H_cycles, their n is L_cycles)."""
        T, n = self.config.H_cycles, self.config.L_cycles
        if self.config.gradient == "one_step":
            return self.one_step(x, z_H, z_L)
        kept = {"last_cycle": 1, "k_cycles": self.config.gradient_cycles, "full": T}
        for j in range(T):
            if j == T - kept[self.config.gradient] and j > 0:
                z_H, z_L = z_H.detach(), z_L.detach()
            for _ in range(n):
                z_L = self.L_net(x, z_H, z_L)
            z_H = self.H_net(z_H, z_L)
        return z_H, z_L


def twin_of(reasoner: Reasoner, mask: Tensor = MASK, **changes: Any) -> Twin:
    weights = {n: p.detach().double().requires_grad_() for n, p in reasoner.named_parameters()}
    return Twin(weights, replace(reasoner.config, **with_cycles(changes)), mask)


def gradients_of(outputs: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Differentiate a fixed random sum of both states; zero for what the graph does not reach."""
    generator = torch.Generator().manual_seed(4)
    loss = sum(
        ((MASK[..., None] * z).double() * torch.randn(z.shape, generator=generator)).sum()
        for z in outputs
    )
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True))


def distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Return the largest error over all tensors, relative to each one's largest entry."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item() for a, b in pairs)


def run_both(
    config: ReasonerConfig, **changes: Any
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Return states and gradients of the library and of a twin, its settings changed."""
    reasoner = Reasoner(config, LENGTH)
    with torch.no_grad():
        for parameter in reasoner.parameters():
            parameter *= 0.88  # larger ones amplify the rounding of fp32
    twin = twin_of(reasoner, **changes)
    states = make_states()
    doubles = [state.detach().double().requires_grad_() for state in states]
    ours, theirs = reasoner(*states, where_of(config)), twin.deep_recursion(*doubles)
    our_grads = gradients_of(ours, [*reasoner.parameters(), *states])
    their_grads = gradients_of(theirs, [*twin.weights.values(), *doubles])
    return [z.detach() for z in ours], [z.detach() for z in theirs], our_grads, their_grads
