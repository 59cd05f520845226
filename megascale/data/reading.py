"""Opens the samples that a manifest's data section describes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megascale.data.blend import BlendedStream
from megascale.data.samples import SampleStream
from megascale.job.data import Data


class Samples(Protocol):
    """Samples of a job, numbered from 0, the same on every rank."""

    def batch(self, first_index: int, count: int) -> NDArray[np.int64]:
        """Samples [first_index, first_index + count): (count, sequence_length + 1)."""

    def documents(self, first_index: int, count: int) -> NDArray[np.int32]:
        """Document number of each input token: (count, sequence_length)."""


def open_samples(data: Data, seed: int) -> SampleStream | BlendedStream:
    """Map the datasets of a job into memory.

    Raises:
        DataError: a file is missing or damaged, or has less data than one sample.
    """
    streams = [SampleStream.open(Path(path), data.sequence_length, seed) for path, _ in data.datasets]
    if len(streams) == 1:
        return streams[0]
    return BlendedStream.of(streams, [weight for _, weight in data.datasets])
