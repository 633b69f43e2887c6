"""Losses against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_reason.losses import (
    IGNORE_INDEX,
    answer_loss,
    exactly_right,
    halt_loss,
    stablemax_log_probs,
)

LABELS = torch.tensor([[3, 0, 1, 4], [2, -100, -100, -100], [-100, 4, -100, 0]])


def naive_answer_loss(logits: Tensor, labels: Tensor) -> float:
    examples = []
    for rows, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        tokens = [
            math.log(sum(math.exp(v) for v in row)) - row[target]
            for row, target in zip(rows, targets, strict=True)
            if target != -100
        ]
        examples.append(sum(tokens) / len(tokens))
    return sum(examples) / len(examples)


def test_answer_loss_is_the_mean_of_means() -> None:
    logits = torch.randn(3, 4, 5) * 3
    assert IGNORE_INDEX == -100
    loss = answer_loss(logits, LABELS)
    assert loss.shape == () and loss.item() == pytest.approx(
        naive_answer_loss(logits, LABELS), 1e-5
    )
    assert answer_loss(torch.zeros(3, 4, 5), LABELS).item() == pytest.approx(math.log(5))


def test_answer_loss_of_equal_parts_averages_to_the_whole() -> None:
    logits, labels = torch.randn(6, 4, 5), LABELS.repeat(2, 1)
    parts = [answer_loss(logits[at], labels[at]) for at in (slice(0, 3), slice(3, 6))]
    torch.testing.assert_close(torch.stack(parts).mean(), answer_loss(logits, labels))


def test_answer_loss_is_fp32_for_half_logits() -> None:
    logits = torch.randn(3, 4, 5).bfloat16()
    loss = answer_loss(logits, LABELS)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_answer_loss(logits.float(), LABELS), 1e-5)


def test_answer_loss_gradient_is_softmax_minus_target_on_labelled_tokens() -> None:
    logits = torch.randn(3, 4, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(answer_loss(logits, LABELS), logits)
    for b in range(3):
        labelled = [k for k in range(4) if LABELS[b, k] != -100]
        for k in range(4):
            expected = torch.zeros(5)
            if k in labelled:
                expected = logits[b, k].detach().softmax(dim=0)
                expected[LABELS[b, k]] -= 1
            torch.testing.assert_close(grad[b, k], expected / len(labelled) / 3)


def naive_stablemax(row: list[float]) -> list[float]:
    """Return the probabilities of one row of logits, in Python's doubles."""
    s = [v + 1 if v >= 0 else 1 / (1 - v) for v in row]
    return [v / sum(s) for v in s]


def naive_stablemax_loss(logits: Tensor, labels: Tensor) -> float:
    examples = []
    for rows, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        tokens = [
            -math.log(naive_stablemax(row)[target])
            for row, target in zip(rows, targets, strict=True)
            if target != -100
        ]
        examples.append(sum(tokens) / len(tokens))
    return sum(examples) / len(examples)


class OnMps(Tensor):
    """Says that it is on Apple's MPS, and refuses fp64 as MPS does."""

    device = property(lambda _: torch.device("mps"))  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs)
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return out


def test_stablemax_on_mps_is_in_fp32() -> None:
    logits = torch.randn(3, 4, 5) * 3
    on_mps = stablemax_log_probs(logits.as_subclass(OnMps)).as_subclass(Tensor)
    assert on_mps.dtype == torch.float32
    torch.testing.assert_close(on_mps.double(), stablemax_log_probs(logits), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
def test_stablemax_is_the_slow_formula_in_doubles(scale: float) -> None:
    logits = torch.randn(3, 4, 5) * scale
    log_probs = stablemax_log_probs(logits)
    assert log_probs.dtype == torch.float64
    expected = [
        [[math.log(p) for p in naive_stablemax(r)] for r in rows] for rows in logits.tolist()
    ]
    torch.testing.assert_close(
        log_probs, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
    )
    loss = answer_loss(logits, LABELS, "stablemax")
    assert loss.shape == ()
    assert loss.item() == pytest.approx(naive_stablemax_loss(logits, LABELS), abs=1e-12)
    assert loss.item() != pytest.approx(answer_loss(logits, LABELS).item(), abs=1e-3)


def test_stablemax_by_hand() -> None:
    # s is 2, 1, 1/2 and 1/4.
    probabilities = stablemax_log_probs(torch.tensor([1.0, 0.0, -1.0, -3.0])).exp()
    assert probabilities.tolist() == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15], abs=1e-12)


def test_stablemax_gradient_is_that_of_the_slow_formula() -> None:
    logits = (torch.randn(3, 4, 5) * 2).requires_grad_()
    (grad,) = torch.autograd.grad(answer_loss(logits, LABELS, "stablemax"), logits)
    values, step = logits.detach().double(), 1e-6
    for b in range(3):
        for k in range(4):
            for v in range(5):
                change = torch.zeros_like(values)
                change[b, k, v] = step
                rise = naive_stablemax_loss(values + change, LABELS)
                rise -= naive_stablemax_loss(values - change, LABELS)
                assert grad[b, k, v].item() == pytest.approx(rise / (2 * step), abs=1e-6)


def test_stablemax_stays_finite_for_sure_logits_and_ignores_rows_without_labels() -> None:
    logits = torch.zeros(2, 1, 3)
    logits[0, 0] = torch.tensor([3e38, -3e38, 0])
    logits.requires_grad_()
    loss = answer_loss(logits, torch.tensor([[1], [-100]]), "stablemax")
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()
    assert loss.item() == pytest.approx(math.log(3e38) * 2 / 2, rel=1e-6)
    assert logits.grad[1].eq(0).all()


def test_very_wrong_and_very_right_logits_stay_finite() -> None:
    logits = torch.zeros(1, 1, 3)
    logits[0, 0, 1] = 1e4
    assert answer_loss(logits, torch.tensor([[1]])) == 0
    assert answer_loss(logits, torch.tensor([[2]])) == 1e4


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ([], [True, True, True]),
        ([(0, 3)], [False, True, True]),
        ([(1, 0), (2, 3)], [True, False, False]),
        ([(1, 2), (2, 0)], [True, True, True]),  # not labelled
    ],
)
def test_exactly_right_needs_every_labelled_token(
    wrong: list[tuple[int, int]], expected: list[bool]
) -> None:
    logits = torch.randn(3, 4, 5)
    for b in range(3):
        for k in range(4):
            logits[b, k, LABELS[b, k].clamp(min=0)] = 9
    for b, k in wrong:
        logits[b, k] = -logits[b, k]
    right = exactly_right(logits, LABELS)
    assert right.dtype == torch.bool and right.tolist() == expected


def test_halt_loss_is_the_binary_cross_entropy_and_pulls_to_the_truth() -> None:
    q = torch.tensor([-5.0, 0.0, 2.0], requires_grad=True)
    correct = torch.tensor([False, True, True])
    chance = [1 / (1 + math.exp(-v)) for v in q.tolist()]
    expected = -(math.log(1 - chance[0]) + math.log(chance[1]) + math.log(chance[2])) / 3
    loss = halt_loss(q, correct)
    assert loss.item() == pytest.approx(expected, 1e-5)
    (grad,) = torch.autograd.grad(loss, q)
    target = [(p - t) / 3 for p, t in zip(chance, [0, 1, 1], strict=True)]
    assert grad.tolist() == pytest.approx(target, abs=1e-6)


def test_halt_loss_is_fp32_and_finite_for_sure_half_logits() -> None:
    loss = halt_loss(torch.tensor([-300.0, 300.0]).bfloat16(), torch.tensor([True, False]))
    assert loss.dtype == torch.float32 and loss == 300
