"""The order of training examples: a pure function, so that nothing of it has to be saved."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=8)
def data_order(seed: int, epoch: int, num: int) -> Tensor:
    """Return the order (num,) of examples in an epoch, a pure function of its arguments."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(num))


def rows_at(positions: Tensor, seed: int, num: int) -> Tensor:
    """Map positions (B,) in the endless data order to rows of a dataset of `num` examples."""
    positions = positions.cpu()
    epochs, rows = positions // num, torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        rows[here] = data_order(seed, epoch, num)[positions[here] % num]
    return rows
