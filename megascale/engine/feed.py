"""The data of each step, as a pure function of the step and the rank's place."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megascale.data.reading import Samples


class MicroBatch(NamedTuple):
    """What a rank works on at once.

    Attributes:
        tokens, labels: int64 (micro_batch, sequence_length); a label is the token after.
        borders: where documents begin in the rows laid end to end, int32 (documents + 1,); None = every row
            is read as one document.
    """

    tokens: Tensor
    labels: Tensor
    borders: Tensor | None = None


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
        within_documents: bool = False,
    ) -> None:
        self._samples = samples
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        self._data_rank = data_rank
        self._data_size = data_size
        self._device = device
        self._within_documents = within_documents
        self.micro_batches = global_batch // (micro_batch * data_size)

    def load(self, step: int) -> list[MicroBatch]:
        """The micro-batches of `step` (1-based)."""
        first = (step - 1) * self._global_batch
        loaded = []
        for index in range(self.micro_batches):
            start = first + (index * self._data_size + self._data_rank) * self._micro_batch
            rows = self._bring(torch.from_numpy(self._samples.batch(start, self._micro_batch)))
            borders = self._borders(start) if self._within_documents else None
            loaded.append(MicroBatch(rows[:, :-1], rows[:, 1:], borders))
        return loaded

    def _borders(self, start: int) -> Tensor:
        documents = self._samples.documents(start, self._micro_batch)
        begins = np.ones_like(documents, dtype=bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        borders = np.append(np.flatnonzero(begins), documents.size)
        return self._bring(torch.from_numpy(borders.astype(np.int32)))

    def _bring(self, tensor: Tensor) -> Tensor:
        """To the device; from pinned memory, so that the copy does not make the host wait."""
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
