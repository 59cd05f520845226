"""A pseudo-random permutation of 0..size-1 without a table.

A Feistel network over pairs (a, b) of digits in base ceil(sqrt(size)): every round adds a keyed hash of one
digit to the other, which is reversible, so the network is a bijection on base^2 >= size values. Results
outside of 0..size-1 pass through it again until they are inside (cycle walking), which gives a bijection on
0..size-1.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ROUNDS: Final = 6
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)


class Permutation:
    """The permutation of 0..size-1 that `key` selects. O(1) memory; size is at most 2**62."""

    def __init__(self, size: int, key: tuple[int, ...]) -> None:
        if not 1 <= size <= 2**62:
            raise ValueError(f"size {size}, expected 1 to 2**62")
        self._size = np.uint64(size)
        self._base = np.uint64(math.isqrt(size - 1) + 1)
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def __call__(self, index: NDArray[np.integer]) -> NDArray[np.int64]:
        """The images of indices (n,), which must be in 0..size-1."""
        value = index.astype(np.uint64)
        outside = np.ones(value.shape, dtype=bool)
        while outside.any():
            value[outside] = self._network(value[outside])
            outside = value >= self._size
        return value.astype(np.int64)

    def _network(self, value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        a, b = value // self._base, value % self._base
        for key in self._keys:
            a, b = b, (a + _hash(b, key) % self._base) % self._base
        return a * self._base + b


def _hash(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """splitmix64's output function; wraps modulo 2**64."""
    mixed = (value + key) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))
