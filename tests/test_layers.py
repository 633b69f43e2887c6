"""Building blocks: norms, SwiGLU, rotary positions, attention and cross-attention with padding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_reason import layers
from latent_reason.config import ReasonerConfig
from latent_reason.layers import (
    Attention,
    Block,
    CrossAttention,
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


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Send every attention to torch's kernel; the list grows by one per call."""
    calls: list[int] = []
    kernel = F.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(layers, "NAIVE_ATTENTION_BELOW", 0)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    return calls


def test_rms_norm_computes_in_fp32_and_keeps_the_dtype() -> None:
    row = torch.tensor([[300.0, -400.0, 0.0, 0.0]])
    expected = row / math.sqrt((300**2 + 400**2) / 4)
    torch.testing.assert_close(rms_norm(row, 1e-5), expected)
    half = rms_norm(row.half(), 1e-5)  # the squares overflow fp16
    assert half.dtype == torch.float16
    torch.testing.assert_close(half, expected.half())
    assert rms_norm(torch.zeros(2, 3), 1e-5).eq(0).all()


def test_init_linear_is_truncated_at_two_std() -> None:
    linear = nn.Linear(64, 500)
    assert init_linear(linear) is linear
    weight = linear.weight * 8
    assert 1.9 < weight.abs().max() <= 2
    assert weight.std().item() == pytest.approx(0.88, abs=0.02)  # of a normal cut at two std


@pytest.mark.parametrize(
    ("size", "expansion", "width"),
    [(64, 4, 256), (96, 4, 256), (97, 4, 512), (128, 4, 512), (512, 4, 1536), (384, 1, 256),
     (385, 1, 512), (1, 0.1, 256)],
)  # fmt: skip
def test_swiglu_width_is_two_thirds_rounded_up_to_256(
    size: int, expansion: float, width: int
) -> None:
    assert swiglu_width(size, expansion) == width
    assert SwiGLU(size, expansion).down_proj.weight.shape == (size, width)


def test_swiglu_and_token_mixer_follow_the_formula() -> None:
    x = torch.randn(2, 5, 3)
    for module, axis in ((SwiGLU(3, 4.0), 2), (TokenMixer(5, 4.0), 1)):
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


def padding_bias(*masks: list[int]) -> Tensor:
    """Return the key bias (B, 1, 1, S) of some masks."""
    bias = Positions(CONFIG, None, torch.tensor(masks)).bias
    assert bias is not None
    return bias


@pytest.mark.parametrize("bias", [None, padding_bias([1, 1, 1, 0, 0], [0, 1, 1, 1, 1])])
@pytest.mark.parametrize("num_queries", [5, 3])
def test_naive_attention_is_the_kernel(num_queries: int, bias: Tensor | None) -> None:
    q = torch.randn(2, 3, num_queries, 8, requires_grad=True)
    k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(2))
    ours = attend(q, k, v, bias)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    weight = torch.randn(ours.shape)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_attention_module_agrees_with_itself_on_the_kernel(
    bf16: bool, request: pytest.FixtureRequest
) -> None:
    attention, x = Attention(CONFIG), torch.randn(2, 5, SIZE)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    where = Positions(CONFIG, position_ids(mask), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        naive = attention(x, where)
        calls = request.getfixturevalue("fused")
        kernel = attention(x, where)
    assert len(calls) == 1
    assert naive.dtype == kernel.dtype == (torch.bfloat16 if bf16 else torch.float32)
    torch.testing.assert_close(naive, kernel, rtol=0, atol=3e-2 if bf16 else 1e-6)
    exact = attention(x, where)
    torch.testing.assert_close(naive.float(), exact, rtol=0, atol=5e-2 if bf16 else 1e-6)


def test_many_positions_use_the_kernel(fused: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "NAIVE_ATTENTION_BELOW", 4)
    for num_keys, num_calls in ((3, 0), (4, 1)):
        attend(torch.randn(1, 1, 9, 2), *torch.randn(2, 1, 1, num_keys, 2).unbind(), None)
        assert len(fused) == num_calls


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


@pytest.mark.parametrize("kernel", [False, True])
def test_cross_attention_reads_real_tokens_only(
    kernel: bool, request: pytest.FixtureRequest
) -> None:
    if kernel:
        request.getfixturevalue("fused")
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
