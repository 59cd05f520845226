"""Blends several datasets by weight.

A binary tree splits the samples of a job between the datasets. A node that is given n samples passes
round(n * share) of them to its left child, where `share` is the left child's part of the node's weight, and
the others to the right one. Both counts only grow with n, so every sample goes to exactly one dataset, each
dataset is read in its own order without gaps, and which sample of which dataset sample i is follows from i
alone. Shares are fractions, so any weight is exact: after any number of samples a dataset at depth d of the
tree is at most d / 2 samples from its share.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count as numbers

import numpy as np
from numpy.typing import NDArray

from megascale.data.samples import SampleStream


@dataclass(frozen=True, slots=True)
class _Split:
    """A node of the tree: the left child gets `numerator / denominator` of its samples."""

    numerator: int
    denominator: int
    left: _Split | int
    right: _Split | int

    def to_left(self, count: int) -> int:
        """How many of the first `count` samples go to the left child."""
        return (2 * count * self.numerator + self.denominator) // (2 * self.denominator)


@dataclass(frozen=True, slots=True)
class Shares:
    """Divides samples between datasets by weight; a dataset with weight 0 gets none."""

    datasets: int
    _root: _Split | int

    @classmethod
    def of(cls, weights: Sequence[float]) -> Shares:
        """Build the tree, as Huffman does: the two lightest nodes are joined until one is left.

        Raises:
            ValueError: a negative weight, or none that is positive.
        """
        if not weights or min(weights) < 0 or max(weights) <= 0:
            raise ValueError(f"weights {list(weights)}, expected none below 0 and one above")
        order = numbers()
        heap: list[tuple[Fraction, int, _Split | int]] = [
            (Fraction(weight), next(order), dataset) for dataset, weight in enumerate(weights) if weight
        ]
        heapq.heapify(heap)
        while len(heap) > 1:
            right, left = heapq.heappop(heap), heapq.heappop(heap)
            total = left[0] + right[0]
            share = left[0] / total
            node = _Split(share.numerator, share.denominator, left[2], right[2])
            heapq.heappush(heap, (total, next(order), node))
        return cls(len(weights), heap[0][2])

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, how many samples it has given before) of sample `index`."""
        node = self._root
        while isinstance(node, _Split):
            before = node.to_left(index)
            if node.to_left(index + 1) > before:
                node, index = node.left, before
            else:
                node, index = node.right, index - before
        return node, index

    def given(self, count: int) -> list[int]:
        """How many of the first `count` samples each dataset gives."""
        given = [0] * self.datasets
        for dataset, share in _given(self._root, count):
            given[dataset] = share
        return given


def _given(node: _Split | int, count: int) -> Iterator[tuple[int, int]]:
    if isinstance(node, int):
        yield node, count
        return
    left = node.to_left(count)
    yield from _given(node.left, left)
    yield from _given(node.right, count - left)


@dataclass(frozen=True, slots=True)
class Blend:
    """The samples of a job, drawn from one or several datasets; implements `Samples`.

    Attributes:
        streams: the datasets.
        shares: which dataset gives each sample.
        begin: the sample of the job at which the shares begin.
        firsts: per dataset, the sample that it gives first.
    """

    streams: tuple[SampleStream, ...]
    shares: Shares
    begin: int
    firsts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        streams: Sequence[SampleStream],
        weights: Sequence[float],
        *,
        begin: int = 0,
        firsts: Sequence[int] = (),
    ) -> Blend:
        """Blend streams from sample `begin` of the job on.

        Args:
            firsts: one per stream; () = each begins with its sample 0.

        Raises:
            ValueError: another number of weights or firsts than streams, or weights that cannot be used.
        """
        starts = tuple(firsts) or (0,) * len(streams)
        if not len(streams) == len(weights) == len(starts):
            raise ValueError(f"{len(streams)} streams, {len(weights)} weights, {len(starts)} firsts")
        return cls(tuple(streams), Shares.of(weights), begin, starts)

    @property
    def sequence_length(self) -> int:
        return self.streams[0].sequence_length

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all datasets together, once each."""
        return sum(stream.samples_per_epoch for stream in self.streams)

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, sample of that dataset) of sample `index`, which is `begin` or later."""
        if index < self.begin:
            raise ValueError(f"sample {index}, expected {self.begin}, where this blend begins, or later")
        dataset, turn = self.shares.locate(index - self.begin)
        return dataset, self.firsts[dataset] + turn

    def batch(self, first_index: int, count: int) -> NDArray[np.int64]:
        """Samples first_index .. first_index + count - 1, int64 (count, sequence_length + 1)."""
        out = np.empty((count, self.sequence_length + 1), dtype=np.int64)
        for stream, first, rows in self._parts(first_index, count):
            out[rows] = stream.batch(first, len(rows))
        return out

    def documents(self, first_index: int, count: int) -> NDArray[np.int32]:
        """Document numbers, int32 (count, sequence_length + 1); see `SampleStream.documents`."""
        out = np.empty((count, self.sequence_length + 1), dtype=np.int32)
        for stream, first, rows in self._parts(first_index, count):
            out[rows] = stream.documents(first, len(rows))
        return out

    def place(self, index: int, column: int) -> str:
        """The file of token `column` of sample `index`, and its position there."""
        dataset, sample = self.locate(index)
        return self.streams[dataset].place(sample, column)

    def _parts(self, first_index: int, count: int) -> Iterator[tuple[SampleStream, int, list[int]]]:
        """(dataset, first of its consecutive samples, rows they go to) of a batch."""
        found: dict[int, tuple[int, list[int]]] = {}
        for row in range(count):
            dataset, sample = self.locate(first_index + row)
            found.setdefault(dataset, (sample, []))[1].append(row)
        for dataset, (first, rows) in found.items():
            yield self.streams[dataset], first, rows
