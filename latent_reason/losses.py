"""Loss functions: pure, reduced to one number per batch, fp32 throughout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy in nats per labelled token, mean within an example, then over examples.

    Args:
        logits: (B, K, V), any float dtype.
        labels: (B, K) token ids, -100 is ignored; every row has at least one label.

    Returns:
        A scalar; the mean over local examples, so that averaging over ranks of equal batch
        size gives the global mean.
    """
    loss = F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    ).view(labels.shape)
    labelled = (labels != IGNORE_INDEX).sum(dim=1)
    return (loss.sum(dim=1) / labelled).mean()


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
