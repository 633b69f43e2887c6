"""Loss functions: pure, in fp32 or better whatever the logits are."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100


def stablemax_log_probs(logits: Tensor) -> Tensor:
    """Return log(s(x) / sum s(x)) over the last axis; s(x) = x + 1, below zero 1 / (1 - x).

    In fp64, on Apple's MPS in fp32, which is all it has.

    Source: HRM's losses.py; Prieto et al., arXiv 2501.04697 (there s is called StableMax).
    """
    x = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64)
    s = torch.where(x >= 0, x + 1, 1 / (1 - x.clamp(max=0)))
    return (s / s.sum(dim=-1, keepdim=True)).log()


def answer_losses(
    logits: Tensor, labels: Tensor, kind: Literal["softmax", "stablemax"] = "softmax"
) -> Tensor:
    """Cross entropy in nats per labelled token, mean within an example.

    Args:
        logits: (B, K, V), any float dtype.
        labels: (B, K) token ids, -100 is ignored; a row without a label counts as zero.
        kind: how logits become probabilities.

    Returns:
        (B,) fp32, with stablemax fp64. Its mean over local examples, averaged over ranks of equal
        batch size, is the global mean.
    """
    labelled = labels != IGNORE_INDEX
    if kind == "softmax":
        loss = F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), reduction="none"
        ).view(labels.shape)
    else:
        target = labels.masked_fill(~labelled, 0)[..., None]
        picked = stablemax_log_probs(logits).gather(-1, target).squeeze(-1)
        loss = -picked.masked_fill(~labelled, 0.0)
    return loss.sum(dim=1) / labelled.sum(dim=1).clamp(min=1)


def answer_loss(
    logits: Tensor, labels: Tensor, kind: Literal["softmax", "stablemax"] = "softmax"
) -> Tensor:
    """Return the mean of `answer_losses`, a scalar."""
    return answer_losses(logits, labels, kind).mean()


def exactly_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (B,) bool: every labelled token is the most likely one."""
    hit = (logits.argmax(dim=-1) == labels) | (labels == IGNORE_INDEX)
    return hit.all(dim=1)


def halt_loss(q_halt_logits: Tensor, correct: Tensor) -> Tensor:
    """Binary cross entropy (nats, mean over examples) of "the answer is already right".

    Args:
        q_halt_logits: (B,), above 0 means stop.
        correct: (B,) bool, from `exactly_right`.

    Source: TRM, arXiv 2510.04871, section 4.6.
    """
    target = correct.to(torch.float32)
    return F.binary_cross_entropy_with_logits(q_halt_logits.float(), target)
