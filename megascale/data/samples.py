"""The order of a job's samples.

All sequences together are one stream of tokens. Windows of sequence_length + 1 tokens start every
sequence_length tokens, so each token but the first is predicted once per epoch. The window of sample i
depends only on (data, sequence_length, seed, i) and not on ranks, nodes or restarts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megascale.data.indexed import IndexedTokens, bin_path
from megascale.data.permutation import Permutation
from megascale.errors import DataError


@dataclass(frozen=True, slots=True)
class SampleStream:
    """Samples of a dataset, numbered from 0 across epochs; each epoch has another order.

    Attributes:
        samples_per_epoch: windows in the data, each of which occurs once per epoch.
    """

    prefix: Path
    sequence_length: int
    seed: int
    samples_per_epoch: int
    _tokens: NDArray[np.integer]
    _documents: NDArray[np.int64]

    @classmethod
    def open(cls, prefix: Path, sequence_length: int, seed: int) -> SampleStream:
        """Map the data at `<prefix>.bin` and `<prefix>.idx`.

        Raises:
            DataError: a file is missing or damaged, or has less data than one sample.
        """
        indexed = IndexedTokens.open(prefix)
        tokens = indexed.tokens
        samples = (len(tokens) - 1) // sequence_length
        if samples < 1:
            raise DataError(
                f"{bin_path(prefix)}: holds {len(tokens)} tokens, but one sample takes sequenceLength + 1 ="
                f" {sequence_length + 1}; prepare more text or lower sequenceLength"
            )
        return cls(prefix, sequence_length, seed, samples, tokens, indexed.document_starts())

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens predicted per epoch."""
        return self.samples_per_epoch * self.sequence_length

    def sample(self, index: int) -> NDArray[np.int64]:
        """Sample `index`, int64 (sequence_length + 1,): inputs are [:-1], targets [1:]."""
        row: NDArray[np.int64] = self.batch(index, 1)[0]
        return row

    def batch(self, first_index: int, count: int) -> NDArray[np.int64]:
        """Samples first_index .. first_index + count - 1, int64 (count, sequence_length + 1).

        Raises:
            ValueError: a negative index or count.
        """
        if first_index < 0 or count < 0:
            raise ValueError(f"samples {first_index} to {first_index + count}, expected no negative numbers")
        out = np.empty((count, self.sequence_length + 1), dtype=np.int64)
        for row, start in enumerate(self._starts(first_index, count)):
            out[row] = self._tokens[start : start + self.sequence_length + 1]
        return out

    def documents(self, first_index: int, count: int) -> NDArray[np.int32]:
        """The document of each token, int32 (count, sequence_length + 1), numbered from 0 in each sample.

        Packed samples cross document borders; a token may attend only to tokens with its own number.
        """
        out = np.zeros((count, self.sequence_length + 1), dtype=np.int32)
        for row, start in enumerate(self._starts(first_index, count)):
            ends = np.asarray([start, start + self.sequence_length]) * self._tokens.itemsize
            first, last = np.searchsorted(self._documents, ends, side="right").tolist()
            np.add.at(out[row], self._documents[first:last] // self._tokens.itemsize - start, 1)
        return np.cumsum(out, axis=1, dtype=np.int32)

    def place(self, index: int, column: int) -> str:
        """The file of token `column` of sample `index`, and its position there."""
        token = self._starts(index, 1)[0] + column
        return f"{bin_path(self.prefix)}: token {token} (byte {token * self._tokens.itemsize})"

    def _starts(self, first_index: int, count: int) -> list[int]:
        """Offset of each sample in the stream, in tokens."""
        windows: list[int] = []
        while len(windows) < count:
            epoch, within = divmod(first_index + len(windows), self.samples_per_epoch)
            here = min(count - len(windows), self.samples_per_epoch - within)
            order = Permutation(self.samples_per_epoch, (self.seed, epoch))
            windows += order(np.arange(within, within + here)).tolist()
        return [window * self.sequence_length for window in windows]
