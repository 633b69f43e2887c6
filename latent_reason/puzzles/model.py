"""`PuzzleModel`: embeddings, the reasoner and its heads for grid puzzles, without a language model.

With mixer "attention" or "mlp" it computes what the published TRM and HRM compute. With mixer
"groups" cells exchange messages over the groups of the puzzle (rows, columns, neighbourhoods), and
with `symbol_states` every symbol of every cell has a state of its own: such a model has the
symmetries of the puzzle built in and serves every size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_reason.config import PuzzleModelConfig
from latent_reason.halting import Carry, fresh_carry, reset_halted
from latent_reason.layers import Positions, fill_normal, halting_head, init_linear
from latent_reason.losses import answer_loss, answer_losses, exactly_right, halt_loss
from latent_reason.reasoner import Reasoner

NEVER = -1e4
"""Logit of a token that cannot be an answer."""


@dataclass
class PuzzleOutput:
    """What one refinement step returns.

    logits: (B, S, V) fp32. q_halt_logits, q_continue_logits: (B,) fp32; without `q_continue` in
    the configuration the second is unused. carry: states after the step, detached. stop: (B,) bool,
    what the halting head says. loss: scalar or None without labels; correct: (B,) bool or None;
    target_q_continue: (B,) or None, what Q-learning pulls q_continue_logits to.
    """

    logits: Tensor
    q_halt_logits: Tensor
    q_continue_logits: Tensor
    carry: Carry
    stop: Tensor
    loss: Tensor | None = None
    correct: Tensor | None = None
    target_q_continue: Tensor | None = None


class PuzzleModel(nn.Module):
    """The recursion on grids of tokens.

    Args:
        config: sizes and choices.
        groups: (G, S) bool, sets of cells of the puzzle; needed by mixer "groups" only.

    Raises:
        ValueError: mixer "groups" without groups.
    """

    groups: Tensor | None

    def __init__(self, config: PuzzleModelConfig, groups: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        if config.reasoner.mixer != "groups":
            groups = None
        elif groups is None:
            raise ValueError("groups: mixer 'groups' needs the sets of cells of the puzzle")
        self.register_buffer("groups", groups)
        size, num_positions = config.reasoner.hidden_size, config.puzzle_emb_len + config.num_cells
        self.embed_tokens = self._table(3 if config.symbol_states else config.vocab_size)
        self.embed_pos: nn.Embedding | None = None
        if config.reasoner.positions == "learned":
            self.embed_pos = self._table(num_positions)
        self.puzzle_emb: nn.Embedding | None = None
        if config.puzzle_emb_size:
            self.puzzle_emb = nn.Embedding(config.num_puzzles, config.puzzle_emb_size, sparse=True)
            nn.init.zeros_(self.puzzle_emb.weight)
        self.reasoner = Reasoner(config.reasoner, num_positions)
        outputs = 1 if config.symbol_states else config.vocab_size
        self.lm_head = init_linear(nn.Linear(size, outputs, bias=False), config.reasoner)
        self.q_head = halting_head(size, 2)

    def _table(self, num: int) -> nn.Embedding:
        """Return a table filled with std 1/sqrt(D); in use it is times sqrt(D)."""
        config = self.config.reasoner
        table = nn.Embedding(num, config.hidden_size)
        fill_normal(table.weight, 1 / math.sqrt(table.embedding_dim), config)
        return table

    def initial_carry(self, num: int, num_tokens: int) -> Carry:
        """Return a carry of `num` batch rows, all halted, for grids of `num_tokens` cells."""
        config = self.config
        copies = config.vocab_size - 2 if config.symbol_states else 1
        length = config.puzzle_emb_len + num_tokens * copies
        z_H, z_L = self.reasoner.initial_states(num, config.num_chains * length)
        return fresh_carry(z_H, z_L)

    def embed(self, inputs: Tensor, puzzle_identifiers: Tensor | None) -> Tensor:
        """Return x: (B, prefix + S, D), or (B, C * S, D) for C symbols with states of their own.

        Args:
            inputs: (B, S) int64 tokens.
            puzzle_identifiers: (B,) int64 rows of the puzzle table, if there is one.
        """
        if self.config.symbol_states:
            symbols = torch.arange(2, self.config.vocab_size, device=inputs.device)
            given = (inputs[:, None] == symbols[:, None]).long()
            open_cell = (inputs < 2).long()[:, None]
            x = self.embed_tokens(given + 2 * open_cell).flatten(1, 2)
        else:
            x = self.embed_tokens(inputs)
        size = x.shape[-1]
        if self.puzzle_emb is not None:
            assert puzzle_identifiers is not None, "puzzle_identifiers"
            length = self.config.puzzle_emb_len
            prefix = self.puzzle_emb(puzzle_identifiers)
            prefix = F.pad(prefix, (0, length * size - prefix.shape[1])).view(-1, length, size)
            x = torch.cat((prefix.to(x.dtype), x), dim=1)
        if self.embed_pos is not None:
            x = math.sqrt(0.5) * (x + self.embed_pos.weight)
        return x * math.sqrt(size)

    def forward(
        self,
        carry: Carry,
        inputs: Tensor,
        labels: Tensor | None = None,
        puzzle_identifiers: Tensor | None = None,
        max_refinement_steps: int | None = None,
        cycles: tuple[int, int] | None = None,
    ) -> PuzzleOutput:
        """Run one refinement step, of `num_chains` chains per puzzle.

        The winning chain alone is the answer and trains it; the others go on from its z_H with
        their own z_L (winner takes all, arXiv 2601.19085).

        Args:
            carry: halted batch rows start anew.
            inputs: (B, S) int64 tokens.
            labels: (B, S) int64, -100 where nothing is asked.
            puzzle_identifiers: (B,) int64, needed with a puzzle table.
            max_refinement_steps: most refinement steps of an example, needed to train q_continue.
            cycles: (H_cycles, L_cycles) in place of those of the configuration.
        """
        num, chains = len(inputs), self.config.num_chains
        carry = reset_halted(carry, self.reasoner.H_init, self._chain_starts(carry))
        x = self.embed(inputs, puzzle_identifiers)
        where = self._where(x)
        z_H, z_L = (z.reshape(num * chains, *x.shape[1:]) for z in (carry.z_H, carry.z_L))
        z_H, z_L = self.reasoner(x.repeat_interleave(chains, dim=0), z_H, z_L, where, cycles)
        logits = self.read_out(z_H, inputs.shape[1])
        q_halt_logits, q_continue_logits = self.judge(z_H)
        asked = None if labels is None else labels.repeat_interleave(chains, dim=0)
        won = self._winners(logits, q_halt_logits, asked)
        carry = carry.after_step(z_H[won].repeat(1, chains, 1), z_L.reshape(num, -1, z_L.shape[-1]))
        told = logits[won], q_halt_logits[won], q_continue_logits[won]
        output = PuzzleOutput(*told, carry, self._stops(*told[1:]))
        if labels is not None and asked is not None:
            output.correct = exactly_right(output.logits, labels)
            loss = answer_loss(output.logits, labels, self.config.loss)
            loss = loss + 0.5 * halt_loss(q_halt_logits, exactly_right(logits, asked))
            if self.config.q_continue and self.training:
                assert max_refinement_steps is not None, "max_refinement_steps"
                with torch.no_grad():
                    next_z_H, _ = self.reasoner(x, carry.z_H, carry.z_L, where, cycles)
                    target = self._target(
                        *self.judge(next_z_H), carry.refinement_steps >= max_refinement_steps
                    )
                output.target_q_continue = target
                q_loss = F.binary_cross_entropy_with_logits(q_continue_logits, target)
                loss = loss + 0.5 * q_loss
            output.loss = loss
        return output

    def _chain_starts(self, carry: Carry) -> Tensor:
        """Return the initial z_L (chains * S, D): that of a chain is L_init, turned around."""
        chains = self.config.num_chains
        starts = torch.stack([self.reasoner.L_init.roll(chain) for chain in range(chains)])
        return starts.repeat_interleave(carry.z_L.shape[1] // chains, dim=0)

    def _winners(self, logits: Tensor, q_halt_logits: Tensor, labels: Tensor | None) -> Tensor:
        """Return the rows (B,) of the best chains among B times as many rows as chains.

        The winner has the lowest loss where labels are given, else the highest q_halt_logits.
        """
        chains, scores = self.config.num_chains, q_halt_logits
        if labels is not None and chains > 1:
            scores = -answer_losses(logits, labels, self.config.loss)
        best = scores.view(-1, chains).argmax(dim=1)
        return best + chains * torch.arange(len(best), device=best.device)

    def _stops(self, q_halt_logits: Tensor, q_continue_logits: Tensor) -> Tensor:
        if self.config.q_continue:
            return q_halt_logits > q_continue_logits
        confidence = self.config.halt_confidence
        return q_halt_logits > math.log(confidence / (1 - confidence))

    def _where(self, x: Tensor) -> Positions:
        ids = torch.arange(x.shape[1], device=x.device)[None]
        return Positions(self.config.reasoner, ids, groups=self.groups)

    def read_out(self, z_H: Tensor, num_cells: int) -> Tensor:
        """Return the logits (B, S, V) fp32 of an answer state."""
        if not self.config.symbol_states:
            return self.lm_head(z_H[:, -num_cells:]).float()
        symbols = self.lm_head(z_H).float().view(len(z_H), -1, num_cells).transpose(1, 2)
        return F.pad(symbols, (2, 0), value=NEVER)

    def judge(self, z_H: Tensor) -> tuple[Tensor, Tensor]:
        """Return q_halt_logits and q_continue_logits, (B,) fp32 each.

        They are read at position 0 as in the originals. With mixer "groups" no position is
        special: the answer is as right as its worst position, by a soft minimum over them.
        """
        if self.config.reasoner.mixer == "groups":
            q = math.log(z_H.shape[1]) - torch.logsumexp(-self.q_head(z_H).float(), dim=1)
        else:
            q = self.q_head(z_H[:, 0]).float()
        return q[:, 0], q[:, 1]

    @staticmethod
    def _target(q_halt_logits: Tensor, q_continue_logits: Tensor, is_last: Tensor) -> Tensor:
        """Return the target of Q-learning (B,) from the next step (HRM, section 2)."""
        best = torch.maximum(q_halt_logits, q_continue_logits)
        return torch.where(is_last, q_halt_logits, best).sigmoid()
