"""The micro-batches of each step, by the job's position in its data and the data-parallel rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megascale.data.ramp import BatchSizes
from megascale.data.reading import Samples
from megascale.errors import SettingsError


class MicroBatch(NamedTuple):
    """The rows that a rank passes through the model at once.

    Attributes:
        tokens, labels: int64 (micro_batch, sequence_length); the label of a token is the next one.
        borders: offsets at which documents begin in the concatenated rows, int32 (documents + 1,); None =
            every row counts as one document.
        counted: bool (micro_batch, sequence_length), the predictions that the loss counts; None = all.
        counted_tokens: how many that are; None = all.
    """

    tokens: Tensor
    labels: Tensor
    borders: Tensor | None = None
    counted: Tensor | None = None
    counted_tokens: int | None = None

    @property
    def predictions(self) -> int:
        """How many predictions the loss counts."""
        return self.labels.numel() if self.counted_tokens is None else self.counted_tokens


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
        vocab_size: int,
        within_documents: bool = False,
        loss_across_documents: bool = True,
        place: Callable[[int, int], str] = "sample {}: token {}".format,
    ) -> None:
        """Cut the batches of one rank.

        Args:
            vocab_size: number of token ids of the model, without padding.
            within_documents: whether micro-batches have the borders of their documents.
            loss_across_documents: whether the loss counts the prediction of a document's first token from the
                document before.
            place: names the file and position of token `column` of sample `index`, for errors.
        """
        self._samples = samples
        self._batches = batches
        self._micro_batch = micro_batch
        self._data_rank = data_rank
        self._data_size = data_size
        self._device = device
        self._vocab_size = vocab_size
        self._within_documents = within_documents
        self._loss_across_documents = loss_across_documents
        self._place = place

    def load(self, step: int) -> list[MicroBatch]:
        """The micro-batches of `step` (1-based).

        Raises:
            SettingsError: a token id that the model does not know; names file, position and `vocabSize`.
        """
        first = self._batches.before(step)
        loaded = []
        for index in range(self._batches.at(step) // (self._micro_batch * self._data_size)):
            start = first + (index * self._data_size + self._data_rank) * self._micro_batch
            loaded.append(self._micro_batch_at(start))
        return loaded

    def _micro_batch_at(self, start: int) -> MicroBatch:
        values = self._samples.batch(start, self._micro_batch)
        self._check_ids(values, start)
        rows = self._to_device(torch.from_numpy(values))
        borders = counted = counted_tokens = None
        if self._within_documents or not self._loss_across_documents:
            documents = self._samples.documents(start, self._micro_batch)
            if self._within_documents:
                borders = self._borders(documents[:, :-1])
            if not self._loss_across_documents:
                inside = documents[:, 1:] == documents[:, :-1]
                counted = self._to_device(torch.from_numpy(inside))
                counted_tokens = int(inside.sum())
        return MicroBatch(rows[:, :-1], rows[:, 1:], borders, counted, counted_tokens)

    def _check_ids(self, values: NDArray[np.int64], start: int) -> None:
        least, largest = int(values.min()), int(values.max())
        if least >= 0 and largest < self._vocab_size:
            return
        row, column = np.argwhere((values < 0) | (values >= self._vocab_size))[0].tolist()
        raise SettingsError(
            f"{self._place(start + row, column)} has id {values[row, column]}, but"
            f" spec.runtime.megatron.model.vocabSize is {self._vocab_size}: ids must be 0 to"
            f" {self._vocab_size - 1}; set vocabSize to more than the largest id, or prepare the data"
            " with the model's tokenizer"
        )

    def _borders(self, documents: NDArray[np.int32]) -> Tensor:
        begins = np.ones_like(documents, dtype=bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        borders = np.append(np.flatnonzero(begins), documents.size)
        return self._to_device(torch.from_numpy(borders.astype(np.int32)))

    def _to_device(self, tensor: Tensor) -> Tensor:
        """Copy to the device from pinned memory, so that the host does not wait for the copy."""
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
