"""The recursion of HRM and TRM: start reading here.

Two states are looped through small nets. `z_L` is the reasoning state, `z_H` the answer state,
`x` the embedded question, which never changes; all are (B, S, D). Inside out:

1. `latent_recursion`, one H cycle: z_L is updated `L_cycles` times, then z_H once.
2. `deep_recursion`: `H_cycles` of these; `gradient` says how far back the gradient reaches.
3. refinement steps (`training.py`): a loss after each deep recursion, then the states are carried
   on without their graph.

A net maps (state, injection) to a new state. TRM passes the same net twice, HRM passes two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latent_reason.config import Gradient

Net = Callable[[Tensor, Tensor], Tensor]


def latent_recursion(
    L_net: Net, H_net: Net, x: Tensor, z_H: Tensor, z_L: Tensor, L_cycles: int
) -> tuple[Tensor, Tensor]:
    """Run one H cycle: reason `L_cycles` times, then improve the answer once.

    Returns:
        (z_H, z_L), each (B, S, D), attached to the graph of the inputs.
    """
    for _ in range(L_cycles):
        z_L = L_net(z_L, z_H + x)
    z_H = H_net(z_H, z_L)
    return z_H, z_L


def deep_recursion(
    L_net: Net,
    H_net: Net,
    x: Tensor,
    z_H: Tensor,
    z_L: Tensor,
    *,
    H_cycles: int,
    L_cycles: int,
    gradient: Gradient = "last_cycle",
    gradient_cycles: int = 1,
) -> tuple[Tensor, Tensor]:
    """Run `H_cycles` H cycles, the last updates of them with gradient.

    Args:
        L_net: net of the reasoning state.
        H_net: net of the answer state; the same object as `L_net` in TRM.
        x: embedded question (B, S, D).
        z_H: answer state (B, S, D); not modified in place.
        z_L: reasoning state (B, S, D); not modified in place.
        H_cycles: H cycles, at least 1.
        L_cycles: z_L updates per H cycle, at least 1.
        gradient: what keeps its graph: "one_step" the last z_L and the last z_H update,
            "last_cycle" the last H cycle, "k_cycles" the last `gradient_cycles`, "full" all.
        gradient_cycles: read for "k_cycles" only; all H cycles if there are no more.

    Returns:
        (z_H, z_L), attached to the graph; the caller detaches them for the next refinement step.

    Raises:
        ValueError: on an unknown `gradient`.

    Source: TRM, arXiv 2510.04871, figure 3 (last_cycle); HRM, arXiv 2506.21734, section 2
    (one_step). k_cycles and full are the truncated and the whole backpropagation through time.
    """
    if gradient == "one_step":
        with torch.no_grad():
            for _ in range(H_cycles - 1):
                z_H, z_L = latent_recursion(L_net, H_net, x, z_H, z_L, L_cycles)
            for _ in range(L_cycles - 1):
                z_L = L_net(z_L, z_H + x)
        return latent_recursion(L_net, H_net, x, z_H, z_L, L_cycles=1)

    with_gradient = {"last_cycle": 1, "k_cycles": min(gradient_cycles, H_cycles), "full": H_cycles}
    if gradient not in with_gradient:
        raise ValueError(f"gradient: got {gradient!r}, expected one_step or {[*with_gradient]}")
    with torch.no_grad():
        for _ in range(H_cycles - with_gradient[gradient]):
            z_H, z_L = latent_recursion(L_net, H_net, x, z_H, z_L, L_cycles)
    for _ in range(with_gradient[gradient]):
        z_H, z_L = latent_recursion(L_net, H_net, x, z_H, z_L, L_cycles)
    return z_H, z_L
