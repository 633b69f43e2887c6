"""Building blocks: norms, SwiGLU, rotary positions, attention with padding, messages in groups."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_reason.config import ReasonerConfig
from latent_reason.layers import (
    Attention,
    Block,
    CrossAttention,
    GroupMixer,
    Positions,
    SwiGLU,
    TokenMixer,
    apply_rotary,
    attend,
    init_linear,
    position_ids,
    rms_norm,
    rotary_tables,
    swiglu_width,
)

CONFIG = ReasonerConfig(hidden_size=16, num_heads=2, expansion=2.0, residual_init="normal")
SIZE = CONFIG.hidden_size


def test_rms_norm_computes_in_fp32_and_keeps_the_dtype() -> None:
    row = torch.tensor([[300.0, -400.0, 0.0, 0.0]])
    expected = row / math.sqrt((300**2 + 400**2) / 4)
    torch.testing.assert_close(rms_norm(row, 1e-5), expected)
    half = rms_norm(row.half(), 1e-5)  # the squares overflow fp16
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, expected.half())
    assert rms_norm(torch.zeros(2, 3), 1e-5).eq(0).all()


@pytest.mark.parametrize(("kind", "std"), [("zero", 0.88), ("normal", 1.0)])
def test_linear_layers_start_as_normals_cut_at_two_std(
    kind: Literal["zero", "normal"], std: float
) -> None:
    """As they are for residual_init zero; widened to std 1 / sqrt(fan in) as in the originals."""
    linear = nn.Linear(64, 1000)
    assert init_linear(linear, replace(CONFIG, residual_init=kind)) is linear
    weight = linear.weight * 8
    assert weight.std().item() == pytest.approx(std, abs=0.01)
    assert 1.98 < weight.abs().max() / (std / 0.88) <= 2.001


@pytest.mark.parametrize(
    ("size", "expansion", "multiple", "width"),
    [(64, 4, 256, 256), (96, 4, 256, 256), (97, 4, 256, 512), (128, 4, 256, 512),
     (512, 4, 256, 1536), (384, 1, 256, 256), (385, 1, 256, 512), (1, 0.1, 256, 256),
     (48, 3, 32, 96), (49, 3, 32, 128), (10, 1, 1, 7), (1, 0.1, 1, 1), (128, 4, 100, 400)],
)  # fmt: skip
def test_swiglu_width_is_two_thirds_rounded_up_to_the_multiple(
    size: int, expansion: float, multiple: int, width: int
) -> None:
    config = ReasonerConfig(expansion=expansion, width_multiple=multiple)
    assert swiglu_width(size, config) == width
    assert SwiGLU(size, config).down_proj.weight.shape == (size, width)


def test_swiglu_widths_are_multiples_of_256_unless_told_otherwise() -> None:
    assert ReasonerConfig().width_multiple == 256


def test_swiglu_and_token_mixer_follow_the_formula() -> None:
    x = torch.randn(2, 5, 3)
    for module, axis in ((SwiGLU(3, CONFIG), 2), (TokenMixer(5, CONFIG), 1)):
        swiglu = module.mlp_t if isinstance(module, TokenMixer) else module
        down = swiglu.down_proj.weight
        gate, up = swiglu.gate_up_proj.weight.split(down.shape[1])
        rows = x.movedim(axis, -1)
        expected = (F.silu(rows @ gate.T) * (rows @ up.T)) @ down.T
        torch.testing.assert_close(module(x), expected.movedim(-1, axis), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1, 1], [0, 1, 2, 3]),
        ([0, 0, 1, 1], [0, 0, 0, 1]),
        ([1, 1, 0, 0], [0, 1, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_position_ids_count_real_tokens(mask: list[int], expected: list[int]) -> None:
    assert position_ids(torch.tensor([mask])).tolist() == [expected]
    assert position_ids(torch.tensor([mask]).bool()).tolist() == [expected]


def test_rotary_keeps_norms_and_only_distances_count() -> None:
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def turn(x: Tensor, position: int) -> Tensor:
        return apply_rotary(x, *rotary_tables(torch.tensor([[position]]), 8, 100.0))

    def score(a: int, b: int) -> float:
        return (turn(q, a) * turn(k, b)).sum().item()

    assert torch.equal(turn(q, 0), q)
    torch.testing.assert_close(turn(q, 9).norm(), q.norm())
    assert score(3, 5) == pytest.approx(score(20, 22), abs=1e-5)
    assert abs(score(3, 5) - score(3, 6)) > 1e-2
    assert apply_rotary(q.bfloat16(), *rotary_tables(torch.tensor([[2]]), 8, 100.0)).dtype == (
        torch.bfloat16
    )


def test_rotary_angles_are_rounded_as_in_the_originals() -> None:
    """Powers are taken first and divided after, in fp32; else the last bits of angles differ."""
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64))
    angles = torch.outer(torch.arange(916, dtype=torch.float32), frequencies)
    cos, sin = rotary_tables(torch.arange(916)[None], 64, 10000.0)
    assert torch.equal(cos[0, 0], angles.cos()) and torch.equal(sin[0, 0], angles.sin())


def padding_bias(*masks: list[int]) -> Tensor:
    """Return the key bias (B, 1, 1, S) of some masks."""
    bias = Positions(CONFIG, None, torch.tensor(masks)).bias
    assert bias is not None
    return bias


MASKS = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]


@pytest.mark.parametrize("masks", [None, MASKS])
@pytest.mark.parametrize("num_queries", [5, 3])
def test_attention_is_a_softmax_over_present_keys(
    num_queries: int, masks: list[list[int]] | None
) -> None:
    q = torch.randn(2, 3, num_queries, 8, requires_grad=True)
    k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(2))
    ours = attend(q, k, v, None if masks is None else padding_bias(*masks))
    rows = []
    for b in range(2):
        keys = torch.tensor([1] * 5 if masks is None else masks[b]).nonzero()[:, 0]
        scores = q[b].double() @ k[b, :, keys].double().transpose(1, 2) / math.sqrt(8)
        rows.append(scores.softmax(dim=2) @ v[b, :, keys].double())
    theirs = torch.stack(rows)
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)
    weight = torch.randn(ours.shape)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_attention_module_attends_to_present_positions_head_by_head(bf16: bool) -> None:
    attention, x = Attention(CONFIG), torch.randn(2, 5, SIZE)
    mask = torch.tensor(MASKS)
    ids = position_ids(mask)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = attention(x, Positions(CONFIG, ids, mask))
    assert output.dtype == (torch.bfloat16 if bf16 else torch.float32)
    width, weight = SIZE // CONFIG.num_heads, attention.qkv_proj.weight
    for b in range(2):
        keys, heads = mask[b].nonzero()[:, 0], []
        for n in range(CONFIG.num_heads):
            q, k, v = (x[b] @ weight[at + n * width :][:width].T for at in (0, SIZE, 2 * SIZE))
            tables = rotary_tables(ids[b : b + 1], width, CONFIG.rope_theta)
            q, k = (apply_rotary(rows[None, None], *tables)[0, 0] for rows in (q, k))
            heads.append((q @ k[keys].T / math.sqrt(width)).softmax(dim=1) @ v[keys])
        expected = torch.cat(heads, dim=1) @ attention.o_proj.weight.T
        torch.testing.assert_close(output[b].float(), expected, rtol=0, atol=5e-2 if bf16 else 1e-6)


def test_all_keys_padded_gives_a_finite_result() -> None:
    q, k, v = torch.randn(3, 1, 2, 4, 8).unbind()
    assert attend(q, k, v, padding_bias([0, 0, 0, 0])).isfinite().all()


def test_shifting_all_positions_changes_nothing_but_swapping_them_does() -> None:
    attention, x = Attention(CONFIG), torch.randn(2, 6, SIZE)
    ids = torch.arange(6).expand(2, -1)
    near, far, turned = (attention(x, Positions(CONFIG, p)) for p in (ids, ids + 50, ids.flip(1)))
    torch.testing.assert_close(far, near, rtol=0, atol=1e-5)
    assert (turned - near).abs().max() > 1e-3


def test_without_positions_attention_commutes_with_permutations() -> None:
    attention, x, order = Attention(CONFIG), torch.randn(2, 6, SIZE), torch.randperm(6)
    plain = ReasonerConfig(**(CONFIG.to_dict() | {"positions": "none"}))
    for where in (Positions(CONFIG, None), Positions(plain, torch.arange(6)[None])):
        torch.testing.assert_close(
            attention(x[:, order], where), attention(x, where)[:, order], rtol=0, atol=1e-5
        )


def test_block_is_post_norm() -> None:
    x, where = torch.randn(2, 5, SIZE), Positions(CONFIG, torch.arange(5)[None])
    block = Block(CONFIG)
    assert block.self_attn is not None
    h = rms_norm(x + block.self_attn(x, where), CONFIG.norm_eps)
    torch.testing.assert_close(block(x, where), rms_norm(h + block.mlp(h), CONFIG.norm_eps))
    torch.testing.assert_close(block(x, where).square().mean(-1), torch.ones(2, 5))


def test_mlp_mixer_needs_the_number_of_positions() -> None:
    config = ReasonerConfig(hidden_size=16, num_heads=2, mixer="mlp")
    with pytest.raises(ValueError, match="num_positions: the 'mlp' mixer needs"):
        Block(config)


def naive_cross_attention(
    module: CrossAttention, queries: Tensor, sequence: Tensor, first_query: int
) -> Tensor:
    """Return what one example of unpadded `sequence` (T, D) gives to `queries` (K, D)."""
    width = SIZE // CONFIG.num_heads
    q = queries @ module.q_proj.weight.T
    k, v = (sequence @ module.kv_proj.weight.T).split(SIZE, dim=1)
    heads = []
    for n in range(CONFIG.num_heads):
        at = slice(n * width, (n + 1) * width)
        places = [torch.arange(len(q)) + first_query, torch.arange(len(k))]
        turned = [
            apply_rotary(rows[None, None, :, at], *rotary_tables(p[None], width, CONFIG.rope_theta))
            for rows, p in zip((q, k), places, strict=True)
        ]
        weights = (turned[0][0, 0] @ turned[1][0, 0].T / math.sqrt(width)).softmax(dim=1)
        heads.append(weights @ v[:, at])
    return torch.cat(heads, dim=1) @ module.o_proj.weight.T


def test_cross_attention_reads_real_tokens_only() -> None:
    module, queries = CrossAttention(CONFIG), torch.randn(3, 2, SIZE)
    tokens, padding = torch.randn(4, SIZE), torch.randn(3, SIZE) * 40
    rows = [torch.cat(p) for p in ((tokens, padding), (padding, tokens), (padding[:2], tokens,
            padding[:1]))]  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 0]])
    at = Positions(CONFIG, torch.tensor([[4, 5]]).expand(3, -1))
    output = module(queries, torch.stack(rows), at, Positions(CONFIG, position_ids(mask), mask))
    assert output.shape == (3, 2, SIZE)
    for b in range(3):
        expected = naive_cross_attention(module, queries[b], tokens, first_query=4)
        torch.testing.assert_close(output[b], expected, rtol=0, atol=1e-5)


GROUPS = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]).bool()
GROUPED = replace(CONFIG, mixer="groups", positions="none")


def in_groups(groups: Tensor = GROUPS) -> Positions:
    return Positions(GROUPED, None, groups=groups)


def slow_group_mixer(mixer: GroupMixer, x: Tensor, groups: Tensor) -> Tensor:
    """Return the messages to the states (C, S, D) of one example, sum by sum, in doubles."""
    num_symbols, num_cells, size = x.shape
    weights = {name: w.detach().double() for name, w in mixer.named_parameters()}
    said = x.double() @ weights["in_proj.weight"].T
    said = said / (1 + torch.exp(-said))
    heard = torch.zeros(num_symbols, num_cells, size, dtype=torch.float64)
    for c in range(num_symbols):
        thoughts = []
        for group in groups:
            cells = [s for s in range(num_cells) if group[s]]
            loud = sum(said[c, s, :size] for s in cells) / math.sqrt(len(cells))
            gate, up = (weights["group_proj.weight"] @ loud).split(size)
            thoughts.append(weights["o_proj.weight"] @ (gate / (1 + torch.exp(-gate)) * up))
        for s in range(num_cells):
            most = max(sum(groups[:, t].tolist()) for t in range(num_cells))
            heard[c, s] = torch.stack(thoughts)[groups[:, s]].sum(dim=0) / most
    for s in range(num_cells):
        loud = sum(said[c, s, size:] for c in range(num_symbols)) / math.sqrt(num_symbols)
        heard[:, s] += weights["symbol_proj.weight"] @ loud
    return heard


@pytest.mark.parametrize("num_symbols", [1, 3])
def test_group_mixer_is_the_slow_formula(num_symbols: int) -> None:
    mixer, x = GroupMixer(GROUPED), torch.randn(2, num_symbols, 6, SIZE)
    heard = mixer(x.flatten(1, 2), in_groups())
    assert heard.shape == (2, num_symbols * 6, SIZE)
    for b in range(2):
        expected = slow_group_mixer(mixer, x[b], GROUPS)
        torch.testing.assert_close(
            heard[b].double(), expected.flatten(0, 1), rtol=0, atol=1e-5, msg=f"example {b}"
        )


def test_group_mixer_does_not_see_the_order_of_cells_groups_or_symbols() -> None:
    mixer, x = GroupMixer(GROUPED), torch.randn(2, 3, 6, SIZE)
    cells, symbols = torch.randperm(6), torch.randperm(3)
    heard = mixer(x.flatten(1, 2), in_groups()).view(2, 3, 6, SIZE)
    moved = mixer(x[:, symbols][:, :, cells].flatten(1, 2), in_groups(GROUPS[:, cells].flip(0)))
    expected = heard[:, symbols][:, :, cells].flatten(1, 2)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
    assert (mixer(x[:, :, cells].flatten(1, 2), in_groups()) - expected).abs().max() > 1e-3


def test_messages_reach_the_cells_of_a_group_and_no_others() -> None:
    mixer, x = GroupMixer(GROUPED), torch.randn(1, 12, SIZE)
    other = x.clone()
    other[0, 0] += 1  # the first cell, which shares a group with the second, of the first symbol
    changed = (mixer(other, in_groups()) - mixer(x, in_groups())).abs().amax(dim=2) > 1e-6
    assert changed[0].nonzero()[:, 0].tolist() == [0, 1, 6]


@pytest.mark.parametrize("mixer", ["attention", "mlp", "groups"])
def test_a_fresh_block_of_zero_residuals_passes_its_input_on(mixer: str) -> None:
    config, x = replace(GROUPED, mixer=mixer, residual_init="zero"), torch.randn(2, 6, SIZE)
    normed = rms_norm(x, config.norm_eps)
    if mixer == "mlp":
        normed = rms_norm(x.transpose(1, 2), config.norm_eps).transpose(1, 2)
        normed = rms_norm(normed, config.norm_eps)
    torch.testing.assert_close(Block(config, 6)(x, in_groups()), normed, rtol=0, atol=1e-4)
    normal = Block(replace(config, residual_init="normal"), 6)
    assert (normal(x, in_groups()) - normed).abs().max() > 0.1
