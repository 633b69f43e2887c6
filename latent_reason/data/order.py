"""Order and random draws of training examples: pure functions, so that nothing is saved of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

LARGEST = 2**63 - 1
REMEMBERED = 2**26
"""Bytes of orders to keep for each size of dataset: batch rows that halt early run ahead of the
others by many epochs of a small one."""


@lru_cache(maxsize=4)
def _orders(num: int) -> Callable[[int, int], Tensor]:
    @lru_cache(maxsize=max(8, REMEMBERED // (8 * num)))
    def order(seed: int, epoch: int) -> Tensor:
        return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(num))

    return order


def data_order(seed: int, epoch: int, num: int) -> Tensor:
    """Return the order (num,) of examples in an epoch, a pure function of its arguments."""
    return _orders(num)(seed, epoch)


def rows_at(positions: Tensor, seed: int, num: int) -> Tensor:
    """Map positions (B,) in the endless data order to rows of a dataset of `num` examples."""
    positions = positions.cpu()
    epochs, rows = positions // num, torch.empty_like(positions)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        rows[here] = data_order(seed, epoch, num)[positions[here] % num]
    return rows


def _wrapped(value: int) -> int:
    """Return a 64-bit constant as the signed integer that torch computes with."""
    return value - 2**64 if value >= 2**63 else value


def scramble(bits: Tensor) -> Tensor:
    """Scramble int64 numbers, each on its own (the finaliser of SplitMix64)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        bits = bits ^ ((bits >> shift) & ((1 << (64 - shift)) - 1))
        bits = bits * _wrapped(factor)
    return bits


class Draws:
    """Random numbers for each of B training examples, a pure function of (seed, position).

    The same numbers come on every device, for every number of processes and after a resume,
    whatever else is in the batch. Each call gives new ones.

    Args:
        positions: (B,) int64 positions in the endless data order.
        seed: of the run.
    """

    def __init__(self, positions: Tensor, seed: int) -> None:
        start = torch.full_like(positions, _wrapped(seed % 2**64))
        self._key = scramble(scramble(start) + positions)
        self._count = 0

    def bits(self, num: int) -> Tensor:
        """Return (B, num) int64 with all 64 bits random."""
        counter = torch.arange(self._count + 1, self._count + num + 1, device=self._key.device)
        self._count += num
        return scramble(self._key[:, None] + counter * _wrapped(0x9E3779B97F4A7C15))

    def numbers(self, num: int) -> Tensor:
        """Return (B, num) int64, uniform in 0..LARGEST."""
        return self.bits(num) & LARGEST

    def below(self, limit: int) -> Tensor:
        """Return (B,) int64, uniform in 0..limit - 1."""
        return self.numbers(1)[:, 0] % limit

    def uniform(self, num: int) -> Tensor:
        """Return (B, num) fp32, uniform from 0 to below 1."""
        return ((self.bits(num) >> 40) & (2**24 - 1)).float() / 2**24

    def permutations(self, num: int) -> Tensor:
        """Return (B, num) int64, a uniform permutation of 0..num - 1 in each row."""
        return self.bits(num).argsort(dim=1)
