"""`LatentCore`: everything of a `LatentReasoner` that trains and is saved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from latent_reason.adapters import Reader, Writer
from latent_reason.config import LatentReasonerConfig
from latent_reason.halting import Carry, fresh_carry, reset_halted
from latent_reason.layers import halting_head
from latent_reason.reasoner import Reasoner


@dataclass
class ReasonerOutput:
    """What one call returns.

    loss: scalar or None without labels. logits: (B, K, V) of the parallel read-out, fp32.
    q_halt_logits: (B,), above 0 means stop. slots: (B, K, E) written vectors.
    carry: states after the last refinement step, detached. correct: (B,) bool or None.
    """

    loss: Tensor | None
    logits: Tensor
    q_halt_logits: Tensor
    slots: Tensor
    carry: Carry
    correct: Tensor | None

    @property
    def stop(self) -> Tensor:
        """(B,) bool: the halting head takes the answer for right."""
        return self.q_halt_logits > 0


@dataclass
class AnswerOutput:
    """Loss (scalar), logits (B, K, V) and the carry; the rest is what the training loop asks."""

    loss: Tensor
    logits: Tensor
    carry: Carry
    correct: Tensor | None = None

    def __post_init__(self) -> None:
        steps = torch.where(self.carry.halted, 0, self.carry.refinement_steps) + 1
        halted = torch.zeros_like(self.carry.halted)
        self.carry = replace(self.carry, refinement_steps=steps, halted=halted)
        self.stop = torch.zeros_like(halted)
        if self.correct is None:
            self.correct = torch.zeros_like(self.carry.halted)


class LatentCore(nn.Module):
    """Everything that trains and is saved: reader, reasoner, writer, halting head.

    Args:
        config: sizes and choices.
        num_features: F, width of the states read from the base.
        llm_hidden_size: E.
    """

    def __init__(self, config: LatentReasonerConfig, num_features: int, llm_hidden_size: int):
        super().__init__()
        size = config.reasoner.hidden_size
        self.config = config
        self.reader = Reader(config, num_features)
        self.reasoner = Reasoner(config.reasoner, config.num_slots)
        self.writer = Writer(config, llm_hidden_size)
        self.q_head = halting_head(size, 1)

    def initial_carry(self, num: int, num_tokens: int) -> Carry:
        """Return a carry of `num` batch rows, all halted, for prompts padded to `num_tokens`."""
        z_H, z_L = self.reasoner.initial_states(num, self.reader.num_positions(num_tokens))
        return fresh_carry(z_H, z_L)

    def forward(
        self, states: Tensor, attention_mask: Tensor, carry: Carry
    ) -> tuple[Tensor, Tensor, Carry]:
        """Run one refinement step.

        Args:
            states: (B, T, F) fp32 from `FrozenLLM.read`.
            attention_mask: (B, T).
            carry: halted batch rows start anew.

        Returns:
            Written vectors (B, K, E), q_halt_logits (B,), the detached carry.
        """
        carry = reset_halted(carry, self.reasoner.H_init, self.reasoner.L_init)
        x, where = self.reader(states, attention_mask)
        z_H, z_L = self.reasoner(x, carry.z_H, carry.z_L, where)
        answer = z_H[:, -self.config.num_slots :]
        q_halt_logits = self.q_head(answer[:, 0]).squeeze(-1).float()
        carry = carry.after_step(z_H, z_L)
        return self.writer(answer), q_halt_logits, carry
