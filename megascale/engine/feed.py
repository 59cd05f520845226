"""The micro-batches of each step, a pure function of the step and the data-parallel rank."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megascale.data.ramp import BatchSizes
from megascale.data.reading import Samples


class MicroBatch(NamedTuple):
    """The rows that a rank passes through the model at once.

    Attributes:
        tokens, labels: int64 (micro_batch, sequence_length); the label of a token is the next one.
        borders: offsets at which documents begin in the concatenated rows, int32 (documents + 1,); None =
            every row counts as one document.
    """

    tokens: Tensor
    labels: Tensor
    borders: Tensor | None = None


class Feed:
    """Cuts global batches into this rank's micro-batches.

    Step s uses the samples [batches.before(s), batches.before(s + 1)) of the job. Micro-batch m of
    data-parallel rank d of D starts at (m * D + d) * micro_batch within it, so the samples of a step do
    not depend on D.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batches: BatchSizes,
        micro_batch: int,
        data_rank: int,
        data_size: int,
        device: torch.device,
        within_documents: bool = False,
    ) -> None:
        self._samples = samples
        self._batches = batches
        self._micro_batch = micro_batch
        self._data_rank = data_rank
        self._data_size = data_size
        self._device = device
        self._within_documents = within_documents

    def load(self, step: int) -> list[MicroBatch]:
        """The micro-batches of `step` (1-based)."""
        first = self._batches.before(step)
        loaded = []
        for index in range(self._batches.at(step) // (self._micro_batch * self._data_size)):
            start = first + (index * self._data_size + self._data_rank) * self._micro_batch
            rows = self._to_device(torch.from_numpy(self._samples.batch(start, self._micro_batch)))
            borders = self._borders(start) if self._within_documents else None
            loaded.append(MicroBatch(rows[:, :-1], rows[:, 1:], borders))
        return loaded

    def _borders(self, start: int) -> Tensor:
        documents = self._samples.documents(start, self._micro_batch)
        begins = np.ones_like(documents, dtype=bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        borders = np.append(np.flatnonzero(begins), documents.size)
        return self._to_device(torch.from_numpy(borders.astype(np.int32)))

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Copy to the device from pinned memory, so that the host does not wait for the copy."""
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
