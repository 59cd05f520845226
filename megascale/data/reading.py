"""Opens the samples that a manifest's data section describes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megascale.data.blend import Blend
from megascale.data.position import Position
from megascale.data.samples import SampleStream
from megascale.job.data import Data


class Samples(Protocol):
    """Samples of a job, numbered from 0, the same on every rank."""

    def batch(self, first_index: int, count: int) -> NDArray[np.int64]:
        """Samples [first_index, first_index + count): (count, sequence_length + 1)."""

    def documents(self, first_index: int, count: int) -> NDArray[np.int32]:
        """Document number of each token: (count, sequence_length + 1)."""


def open_samples(data: Data, position: Position) -> Blend:
    """Map the datasets of a job into memory, in the order of `position`.

    Raises:
        DataError: a file is missing or damaged, or has less data than one sample.
    """
    streams = [
        SampleStream.open(Path(path), data.sequence_length, position.seed) for path, _ in data.datasets
    ]
    in_use = position.in_use
    weights, firsts = [part.weight for part in in_use], [part.first for part in in_use]
    return Blend.of(streams, weights, begin=position.begin, firsts=firsts)
