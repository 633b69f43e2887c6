"""`Reasoner`: nets, initial states and the recursion; one class for TRM and HRM.

Input and output are latent states; embedding the question and reading the answer is the work of
the model around it (`latent_reasoner.py`).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from latent_reason.config import ReasonerConfig
from latent_reason.layers import Positions, Stack, fill_normal
from latent_reason.recursion import deep_recursion


class Reasoner(nn.Module):
    """One deep recursion over (B, S, D) states.

    Args:
        config: widths, depths and cycles.
        num_positions: S, needed by the token-mixing variant only.

    The initial states are fixed random vectors (`fill_normal`), the same for every position:
    buffers, since no gradient reaches them when H_cycles > 1 (as in the originals).
    """

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: ReasonerConfig, num_positions: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.L_level = Stack(config, config.L_layers, num_positions)
        self._H_level = None
        if config.kind == "hrm":
            self._H_level = Stack(config, config.H_layers, num_positions)
        for name in ("H_init", "L_init"):
            self.register_buffer(name, fill_normal(torch.empty(config.hidden_size), 1.0, config))

    @property
    def H_level(self) -> Stack:
        """The net of z_H; TRM's only net serves both levels."""
        return self.L_level if self._H_level is None else self._H_level

    def initial_states(self, num: int, length: int) -> tuple[Tensor, Tensor]:
        """Return (z_H, z_L), each (num, length, D) fp32, read-only views."""
        return (
            self.H_init.expand(num, length, -1),
            self.L_init.expand(num, length, -1),
        )

    def forward(
        self,
        x: Tensor,
        z_H: Tensor,
        z_L: Tensor,
        where: Positions,
        cycles: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one deep recursion; return (z_H, z_L) attached to the graph.

        Args:
            x: embedded question (B, S, D).
            z_H: answer state (B, S, D).
            z_L: reasoning state (B, S, D).
            where: positions and groups.
            cycles: (H_cycles, L_cycles) in place of those of the configuration.
        """
        config = self.config
        H_cycles, L_cycles = cycles or (config.H_cycles, config.L_cycles)
        return deep_recursion(
            partial(self.L_level, where=where),
            partial(self.H_level, where=where),
            x,
            z_H,
            z_L,
            H_cycles=H_cycles,
            L_cycles=L_cycles,
            gradient=config.gradient,
            gradient_cycles=config.gradient_cycles,
        )
