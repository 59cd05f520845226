"""Several datasets, drawn from by weight.

Sample i comes from the dataset that a fixed schedule of 4,096 places names at i modulo 4,096, and is the next
sample of that dataset in its own order. Which one that is can be computed for any i at once, so the state of
a blend is the index alone, as for a single dataset.
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
        schedule: int64 (4096,), dataset of each place. turns: int64 (4096,), how often it came before.
        counts: int64 (datasets,), places of each dataset.
    """

    streams: tuple[SampleStream, ...]
    schedule: NDArray[np.int64]
    turns: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, streams: Sequence[SampleStream], weights: Sequence[float]) -> BlendedStream:
        """Blend streams; no weight is so small that its dataset is left out.

        Raises:
            ValueError: no streams, as many weights as streams, none of them positive.
        """
        if not streams or len(streams) != len(weights) or min(weights) <= 0:
            raise ValueError(f"{len(streams)} streams with weights {list(weights)}")
        if len(streams) > _PERIOD:
            raise ValueError(f"{len(streams)} datasets, at most {_PERIOD} can be blended")
        counts = _places(np.asarray(weights, dtype=np.float64))
        schedule = _spread(counts)
        turns = np.empty(_PERIOD, dtype=np.int64)
        for dataset in range(len(streams)):
            places = np.flatnonzero(schedule == dataset)
            turns[places] = np.arange(len(places))
        return cls(tuple(streams), schedule, turns, counts)

    @property
    def sequence_length(self) -> int:
        return self.streams[0].sequence_length

    @property
    def samples_per_epoch(self) -> int:
        """Samples of one pass over all datasets together, if weights were as sizes are."""
        return sum(stream.samples_per_epoch for stream in self.streams)

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, sample of that dataset) of sample `index`."""
        round_, place = divmod(index, _PERIOD)
        dataset = int(self.schedule[place])
        return dataset, round_ * int(self.counts[dataset]) + int(self.turns[place])

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


def _places(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of each dataset out of the period: at least one, in proportion, largest remainders first."""
    exact = weights / weights.sum() * _PERIOD
    counts: NDArray[np.int64] = np.maximum(1, np.floor(exact)).astype(np.int64)
    while counts.sum() > _PERIOD:
        counts[np.argmax(counts)] -= 1
    for dataset in np.argsort(-(exact - counts), kind="stable")[: _PERIOD - counts.sum()]:
        counts[dataset] += 1
    return counts


def _spread(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each dataset's places, evenly over the period: the j-th of c lies at (j + 1/2) / c."""
    ideal = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    owner = np.repeat(np.arange(len(counts)), counts)
    spread: NDArray[np.int64] = owner[np.argsort(ideal, kind="stable")]
    return spread
