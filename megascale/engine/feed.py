"""The data of each step, as a pure function of the step and the rank's place."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Samples(Protocol):
    """What `megascale.data.samples.SampleStream` gives."""

    def batch(self, first_index: int, count: int) -> npt.NDArray[np.int64]:
        """Samples [first_index, first_index + count): (count, sequence_length + 1)."""


class Feed:
    """Cuts global batches into this rank's micro-batches.

    Step s uses samples [(s - 1) * global_batch, s * global_batch) of the job. Micro-batch m of
    data-parallel rank d of D starts at (m * D + d) * micro_batch within it, so the samples of a step do
    not depend on D.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        global_batch: int,
        micro_batch: int,
        data_rank: int,
        data_size: int,
        device: torch.device,
    ) -> None:
        self._samples = samples
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        self._data_rank = data_rank
        self._data_size = data_size
        self._device = device
        self.micro_batches = global_batch // (micro_batch * data_size)

    def load(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """(tokens, labels) of each micro-batch of `step` (1-based): int64, (micro_batch, sequence_length)."""
        first = (step - 1) * self._global_batch
        pairs = []
        for index in range(self.micro_batches):
            start = first + (index * self._data_size + self._data_rank) * self._micro_batch
            rows = torch.from_numpy(self._samples.batch(start, self._micro_batch)).to(self._device)
            pairs.append((rows[:, :-1], rows[:, 1:]))
        return pairs
