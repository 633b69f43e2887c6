"""Losses against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from latent_reason.losses import IGNORE_INDEX, answer_loss, exactly_right, halt_loss

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
