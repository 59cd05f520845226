"""Blends several datasets by weight.

A fixed schedule of 4,096 entries assigns sample i to the dataset of entry i modulo 4,096, and it is the next
sample of that dataset in its own order. The index of that sample is computed directly from i, so the state of
a blend is one index, as for a single dataset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from megascale.data.samples import SampleStream

_PERIOD: Final = 4096


@dataclass(frozen=True, slots=True)
class BlendedStream:
    """Samples of a blend; the interface of `SampleStream`.

    Attributes:
        streams: the datasets.
        schedule: int64 (4096,), the dataset of each entry. turns: int64 (4096,), earlier entries of the same.
        counts: int64 (datasets,), entries of each dataset.
    """

    streams: tuple[SampleStream, ...]
    schedule: NDArray[np.int64]
    turns: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, streams: Sequence[SampleStream], weights: Sequence[float]) -> BlendedStream:
        """Blend streams; every dataset gets at least one entry, however small its weight.

        Raises:
            ValueError: no streams, another number of weights, or a weight that is not positive.
        """
        if not streams or len(streams) != len(weights) or min(weights) <= 0:
            raise ValueError(f"{len(streams)} streams with weights {list(weights)}")
        if len(streams) > _PERIOD:
            raise ValueError(f"{len(streams)} datasets, at most {_PERIOD} can be blended")
        counts = _entry_counts(np.asarray(weights, dtype=np.float64))
        schedule = _spread(counts)
        turns = np.empty(_PERIOD, dtype=np.int64)
        for dataset in range(len(streams)):
            entries = np.flatnonzero(schedule == dataset)
            turns[entries] = np.arange(len(entries))
        return cls(tuple(streams), schedule, turns, counts)

    @property
    def sequence_length(self) -> int:
        return self.streams[0].sequence_length

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all datasets together, once each."""
        return sum(stream.samples_per_epoch for stream in self.streams)

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, sample of that dataset) of sample `index`."""
        round_, entry = divmod(index, _PERIOD)
        dataset = int(self.schedule[entry])
        return dataset, round_ * int(self.counts[dataset]) + int(self.turns[entry])

    def batch(self, first_index: int, count: int) -> NDArray[np.int64]:
        """Samples first_index .. first_index + count - 1, int64 (count, sequence_length + 1)."""
        if first_index < 0 or count < 0:
            raise ValueError(f"samples {first_index} to {first_index + count}, expected no negative numbers")
        out = np.empty((count, self.sequence_length + 1), dtype=np.int64)
        for row in range(count):
            dataset, index = self.locate(first_index + row)
            out[row] = self.streams[dataset].batch(index, 1)[0]
        return out

    def documents(self, first_index: int, count: int) -> NDArray[np.int32]:
        """Document numbers of the inputs, int32 (count, sequence_length); see `SampleStream.documents`."""
        out = np.empty((count, self.sequence_length), dtype=np.int32)
        for row in range(count):
            dataset, index = self.locate(first_index + row)
            out[row] = self.streams[dataset].documents(index, 1)[0]
        return out


def _entry_counts(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Entries of each dataset in the schedule: at least one, proportional, by largest remainders."""
    exact = weights / weights.sum() * _PERIOD
    counts: NDArray[np.int64] = np.maximum(1, np.floor(exact)).astype(np.int64)
    while counts.sum() > _PERIOD:
        counts[np.argmax(counts)] -= 1
    for dataset in np.argsort(-(exact - counts), kind="stable")[: _PERIOD - counts.sum()]:
        counts[dataset] += 1
    return counts


def _spread(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The schedule, with the entries of each dataset evenly spaced: the j-th of c is near (j + 1/2) / c."""
    ideal = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    owner = np.repeat(np.arange(len(counts)), counts)
    spread: NDArray[np.int64] = owner[np.argsort(ideal, kind="stable")]
    return spread
