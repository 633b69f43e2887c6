"""Building blocks of a reasoner: RMSNorm, SwiGLU, rotary attention, token mixing, Block, Stack.

Post-norm without learned scales and without biases, as in TRM and HRM. `recursion.py` loops a
`Stack`; nothing here knows about refinement steps.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_reason.config import ReasonerConfig

CUT_STD = 0.8796256610342398
"""Standard deviation of a unit normal distribution that is cut at -2 and 2."""


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Divide (..., D) by its root mean square over D; computed in fp32, returned in x's dtype."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def fill_normal(tensor: Tensor, std: float, config: ReasonerConfig) -> Tensor:
    """Fill by a normal distribution of `std` cut at two std, of which CUT_STD is left; return it.

    With `residual_init` "normal" it is widened to have `std` after the cut, as in the originals.
    """
    if config.residual_init == "normal":
        std = std / CUT_STD
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def init_linear(linear: nn.Linear, config: ReasonerConfig) -> nn.Linear:
    """Initialise the weight by `fill_normal` with std 1/sqrt(fan in); return the layer."""
    fill_normal(linear.weight, 1.0 / math.sqrt(linear.in_features), config)
    return linear


def halting_head(size: int, num_outputs: int) -> nn.Linear:
    """Return a linear layer that says at first, whatever it reads, not to stop."""
    head = nn.Linear(size, num_outputs)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, -5.0)
    return head


def swiglu_width(size: int, config: ReasonerConfig) -> int:
    """Return round(expansion * size * 2/3), rounded up to a multiple of `width_multiple`."""
    width, multiple = round(config.expansion * size * 2 / 3), config.width_multiple
    return -(-max(1, width) // multiple) * multiple


class SwiGLU(nn.Module):
    """down(silu(gate) * up) over the last axis: (..., size) to (..., size), gate and up fused.

    With `norm_swiglu` it is down(sigmoid(gate) * rms_norm(gate * up)), whose scale no gate can
    blow up (SIC, arXiv 2601.19085).
    """

    def __init__(self, size: int, config: ReasonerConfig) -> None:
        super().__init__()
        self.norm_eps = config.norm_eps if config.norm_swiglu else None
        width = swiglu_width(size, config)
        self.gate_up_proj = init_linear(nn.Linear(size, 2 * width, bias=False), config)
        self.down_proj = init_linear(nn.Linear(width, size, bias=False), config)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., size) to (..., size)."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        if self.norm_eps is None:
            return self.down_proj(F.silu(gate) * up)
        return self.down_proj(gate.sigmoid() * rms_norm(gate * up, self.norm_eps))


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return positions (B, T) that count real tokens only, for padding on either side."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def rotary_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (B, 1, S, head_dim / 2) fp32, for integer positions (B, S)."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    # Rounded as in the originals: their published weights must give their outputs.
    angles = positions[:, None, :, None].float() * (1.0 / theta ** (exponent / head_dim))
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, N, S, head_dim) by the tables of `rotary_tables` (rotate-half form), in fp32."""
    first, second = x.float().chunk(2, dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention, (B, N, S, head_dim) each; bias (B, 1, 1, S) is added to the scores."""
    mask = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, S, N * width) to (B, N, S, width)."""
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, N, S, width) to (B, S, N * width)."""
    return x.transpose(1, 2).flatten(2)


class Positions:
    """What every block of one recursion shares: rotary tables, key padding bias, groups.

    Args:
        config: gives head width and rotary base.
        positions: integer positions (B, S), or None for no position embedding.
        mask: True where a position holds something, (B, S), or None for all.
        groups: sets of cells (G, S), above zero for the cells of a group; for mixer "groups".
    """

    def __init__(
        self,
        config: ReasonerConfig,
        positions: Tensor | None,
        mask: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> None:
        self.rotary: tuple[Tensor, Tensor] | None = None
        if positions is not None and config.positions == "rope":
            head_dim = config.hidden_size // config.num_heads
            self.rotary = rotary_tables(positions, head_dim, config.rope_theta)
        self.bias: Tensor | None = None
        if mask is not None:
            self.bias = torch.zeros(mask.shape, device=mask.device)
            self.bias = self.bias.masked_fill(~mask.bool(), -1e9)[:, None, None, :]
        self.gather: Tensor | None = None
        self.scatter: Tensor | None = None
        if groups is not None:
            member = (groups > 0).float()
            # By the root of the size: the mean of nine would drown what one cell says.
            self.gather = member / member.sum(dim=1, keepdim=True).sqrt()
            # Over the most groups of any cell: cells at a border can tell that they have fewer.
            self.scatter = member.T / member.sum(dim=0).max()


class Attention(nn.Module):
    """Bidirectional multi-head self-attention over (B, S, D)."""

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        self.qkv_proj = init_linear(nn.Linear(size, 3 * size, bias=False), config)
        self.o_proj = init_linear(nn.Linear(size, size, bias=False), config)

    def forward(self, x: Tensor, where: Positions) -> Tensor:
        """Attend within x (B, S, D); padded positions are not attended to."""
        heads = split_heads(self.qkv_proj(x), 3 * self.num_heads)
        q_and_k, v = heads.split((2 * self.num_heads, self.num_heads), dim=1)
        if where.rotary is not None:
            q_and_k = apply_rotary(q_and_k, *where.rotary)
        q, k = q_and_k.chunk(2, dim=1)
        return self.o_proj(join_heads(attend(q, k, v, where.bias)))


class CrossAttention(nn.Module):
    """Multi-head attention from queries (B, K, D) to a sequence (B, T, D).

    Rotary positions tell queries and sequence apart; the config of the reasoner gives sizes.
    """

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        self.q_proj = init_linear(nn.Linear(size, size, bias=False), config)
        self.kv_proj = init_linear(nn.Linear(size, 2 * size, bias=False), config)
        self.o_proj = init_linear(nn.Linear(size, size, bias=False), config)

    def forward(self, queries: Tensor, sequence: Tensor, at: Positions, where: Positions) -> Tensor:
        """Attend; `at` places the queries, `where` the sequence and its padding."""
        q = split_heads(self.q_proj(queries), self.num_heads)
        k, v = split_heads(self.kv_proj(sequence), 2 * self.num_heads).chunk(2, dim=1)
        if at.rotary is not None and where.rotary is not None:
            q, k = apply_rotary(q, *at.rotary), apply_rotary(k, *where.rotary)
        return self.o_proj(join_heads(attend(q, k, v, where.bias)))


class TokenMixer(nn.Module):
    """SwiGLU over positions: (B, S, D) to (B, S, D) for one fixed S, as in TRM's MLP variant."""

    def __init__(self, num_positions: int, config: ReasonerConfig) -> None:
        super().__init__()
        self.mlp_t = SwiGLU(num_positions, config)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions of x (B, S, D), each feature alike."""
        return self.mlp_t(x.transpose(1, 2)).transpose(1, 2)


class GroupMixer(nn.Module):
    """Messages between cells that share a group, and between the symbols of a cell.

    A group sees the sum of what its cells say, over the root of their number, and thinks by a
    SwiGLU; every cell takes the sum of its groups, divided by the most groups of any cell. With a
    state for each (symbol, cell) the symbols share all weights and exchange such sums within a
    cell. No weight depends on the order of cells, groups or symbols, nor on their number, so the
    symmetries of the puzzle hold exactly and one net fits every size.

    Source: the messages of recurrent relational networks (Palm et al., arXiv 1711.08028) on groups
    in place of pairs; states per symbol as in SE-RRM (arXiv 2603.02193).
    """

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.in_proj = init_linear(nn.Linear(size, 2 * size, bias=False), config)
        self.group_proj = init_linear(nn.Linear(size, 2 * size, bias=False), config)
        self.o_proj = init_linear(nn.Linear(size, size, bias=False), config)
        self.symbol_proj = init_linear(nn.Linear(size, size, bias=False), config)

    def forward(self, x: Tensor, where: Positions) -> Tensor:
        """Mix x (B, C * S, D), C symbols of S cells, with the groups in `where`."""
        assert where.gather is not None and where.scatter is not None
        gather, scatter = where.gather.to(x.dtype), where.scatter.to(x.dtype)
        num_cells = gather.shape[1]
        said = F.silu(self.in_proj(x)).view(len(x), -1, num_cells, 2 * x.shape[-1])
        to_groups, to_symbols = said.chunk(2, dim=-1)
        gate, up = self.group_proj(gather @ to_groups).chunk(2, dim=-1)
        heard = scatter @ self.o_proj(F.silu(gate) * up)
        of_cell = to_symbols.sum(dim=1, keepdim=True) / math.sqrt(to_symbols.shape[1])
        heard = heard + self.symbol_proj(of_cell)
        return heard.flatten(1, 2)


class Block(nn.Module):
    """Post-norm block: x = rms(x + mix(x)); x = rms(x + swiglu(x)).

    With token mixing the first norm runs over positions, as in the original.

    Args:
        num_positions: S, needed by the token mixer only.
    """

    def __init__(self, config: ReasonerConfig, num_positions: int | None = None) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.mlp = SwiGLU(config.hidden_size, config)
        self.mixer: TokenMixer | None = None
        self.self_attn: Attention | GroupMixer | None = None
        if config.mixer == "mlp":
            if num_positions is None:
                raise ValueError("num_positions: the 'mlp' mixer needs the number of positions")
            self.mixer = TokenMixer(num_positions, config)
        else:
            self.self_attn = (
                Attention(config) if config.mixer == "attention" else GroupMixer(config)
            )
        if config.residual_init == "zero":
            for name, module in self.named_modules():
                if name.endswith(("down_proj", "o_proj", "symbol_proj")):
                    assert isinstance(module, nn.Linear)
                    nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, where: Positions) -> Tensor:
        """Map x (B, S, D) to (B, S, D); the token mixer ignores `where`."""
        if self.self_attn is not None:
            x = rms_norm(x + self.self_attn(x, where), self.eps)
        else:
            assert self.mixer is not None
            mixed = x + self.mixer(x)
            x = rms_norm(mixed.transpose(1, 2), self.eps).transpose(1, 2)
        return rms_norm(x + self.mlp(x), self.eps)


class Stack(nn.Module):
    """The net of one level: blocks applied to state + injection, (B, S, D) each."""

    def __init__(
        self, config: ReasonerConfig, num_layers: int, num_positions: int | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config, num_positions) for _ in range(num_layers))

    def forward(self, state: Tensor, injection: Tensor, where: Positions) -> Tensor:
        """Return the new state (B, S, D); the arguments are not modified."""
        x = state + injection
        for block in self.layers:
            x = block(x, where)
        return x
