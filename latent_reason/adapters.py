"""Reader and writers: the way into the reasoner's latent space and the way back.

`Reader`: base states (B, T, F) to the embedded question x (B, S, D), K answer slots at its end.
`Writer`: answer slots (B, K, D) to vectors in the base's width (B, K, E), read by the frozen
`lm_head` (writer head) or given to the base as soft tokens (writer soft).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latent_reason.config import LatentReasonerConfig
from latent_reason.layers import CrossAttention, Positions, init_linear, position_ids, rms_norm


def slot_features(num_slots: int, size: int, device: torch.device | None = None) -> Tensor:
    """Return sinusoids of the slot's number, (K, size) fp32, that tell slots apart from the start.

    Slots that begin alike differ by rotary positions only, and their attention to each other gets
    no gradient but rounding noise.
    """
    half = size // 2
    rates = 1e-2 ** (torch.arange(half, device=device) / half)
    angles = torch.arange(num_slots, device=device)[:, None] * rates
    return F.pad(torch.cat((angles.sin(), angles.cos()), dim=1), (0, size - 2 * half))


def end_of_prompt(states: Tensor, attention_mask: Tensor, num_slots: int) -> Tensor:
    """Return the states of the last K - 1 tokens and a zero for the end token, (B, K, D).

    An answer as long as its question, such as a sorted list, finds every symbol in its own slot.
    Slots before the first token get zeros.

    Args:
        states: (B, T, D).
        attention_mask: (B, T), padding on either side.
        num_slots: K.

    Source: uniform copy in non-autoregressive translation (Gu et al., arXiv 1711.02281).
    """
    slots = torch.arange(1 - num_slots, 1, device=states.device)
    wanted = attention_mask.long().sum(dim=1, keepdim=True) + slots
    found = wanted[:, :, None] == position_ids(attention_mask)[:, None]
    return (found & attention_mask.bool()[:, None]).to(states.dtype) @ states


class Reader(nn.Module):
    """Turn prompt states into the embedded question x.

    Slots start from one learned query plus `slot_features` and `end_of_prompt`. No weight depends
    on K, which may grow after training; the end of the prompt then moves on by as many slots. Kind
    "perceiver": K slots read the prompt by cross-attention; x is (B, K, D). Kind "concat": the
    slots are appended to the projected prompt; x is (B, T + K, D). Slots follow the last real token
    in position, whatever the padding.

    Args:
        config: kind, K and the sizes of the reasoner.
        num_features: F, width of the states that `FrozenLLM.read` returns.
    """

    def __init__(self, config: LatentReasonerConfig, num_features: int) -> None:
        super().__init__()
        self.config = config
        size = config.reasoner.hidden_size
        self.down_proj = init_linear(nn.Linear(num_features, size, bias=False), config.reasoner)
        self.slot_query = nn.Parameter(torch.randn(size))
        self.cross_attn = CrossAttention(config.reasoner) if config.reader == "perceiver" else None

    def num_positions(self, num_tokens: int) -> int:
        """Return S for prompts padded to `num_tokens`."""
        return self.config.num_slots + (0 if self.cross_attn is not None else num_tokens)

    def forward(self, states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Positions]:
        """Embed prompts.

        Args:
            states: (B, T, F) fp32.
            attention_mask: (B, T), padding on either side.

        Returns:
            x (B, S, D) and the positions of its S places.
        """
        reasoner, num_slots = self.config.reasoner, self.config.num_slots
        down = self.down_proj(states)
        slots = self.slot_query + slot_features(num_slots, down.shape[-1], down.device)
        slots = slots.to(down.dtype) + end_of_prompt(down, attention_mask, num_slots)
        after = attention_mask.long().sum(dim=1, keepdim=True)
        slot_ids = after + torch.arange(num_slots, device=after.device)
        token_ids = position_ids(attention_mask)
        if self.cross_attn is None:
            present = torch.cat((attention_mask.bool(), torch.ones_like(slot_ids).bool()), dim=1)
            where = Positions(reasoner, torch.cat((token_ids, slot_ids), dim=1), present)
            return torch.cat((down, slots), dim=1), where
        at = Positions(reasoner, slot_ids)
        read = self.cross_attn(slots, down, at, Positions(reasoner, token_ids, attention_mask))
        return rms_norm(slots + read, reasoner.norm_eps), at


class Writer(nn.Module):
    """Project slots into the base's width, (B, K, D) to (B, K, E).

    For writer head it also learns `end_row` (E,), used in place of the `lm_head` row of the end
    token: a base that never saw its end token may have a row that no vector can make the largest.
    """

    def __init__(self, config: LatentReasonerConfig, llm_hidden_size: int) -> None:
        super().__init__()
        up_proj = nn.Linear(config.reasoner.hidden_size, llm_hidden_size, bias=False)
        self.up_proj = init_linear(up_proj, config.reasoner)
        has_row = config.writer == "head"
        self.end_row = nn.Parameter(torch.zeros(llm_hidden_size)) if has_row else None

    def forward(self, slots: Tensor) -> Tensor:
        """Return the written vectors (B, K, E)."""
        return self.up_proj(slots)


def soft_tokens(vectors: Tensor, norm: float) -> Tensor:
    """Rescale (B, K, E) to the mean norm of the base's input embeddings, so none stands out."""
    return F.normalize(vectors.float(), dim=-1) * norm


def nearest_token_logits(vectors: Tensor, embedding: Tensor, norms: Tensor) -> Tensor:
    """Read vectors as tokens: 20 times the cosine to each row of the table.

    The gradient makes its own copy of the table in the precision of the computation; one kept for
    each refinement step would fill the memory.

    Args:
        vectors: (B, K, E).
        embedding: the table (V, E).
        norms: (V,), of its rows.

    Returns:
        Logits (B, K, V).
    """
    keep = {"use_reentrant": False, "preserve_rng_state": False}
    return checkpoint(_scaled_cosines, vectors, embedding, norms, **keep)


def _scaled_cosines(vectors: Tensor, embedding: Tensor, norms: Tensor) -> Tensor:
    return 20.0 * F.normalize(vectors.float(), dim=-1) @ embedding.float().T / norms
