from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given
from hypothesis import strategies as st

from megascale.data.ramp import BatchSizes
from megascale.engine.feed import Feed

LENGTH = 4


class Numbered:
    """Sample i is i, i + 1, ... so that a sample tells which one it is."""

    def batch(self, first_index: int, count: int) -> npt.NDArray[np.int64]:
        return np.arange(first_index, first_index + count)[:, None] + np.arange(LENGTH + 1)[None, :]

    def documents(self, first_index: int, count: int) -> npt.NDArray[np.int32]:
        """Token 3 is the last of its document."""
        return (self.batch(first_index, count)[:, :-1] > 3).astype(np.int32)


def feeds(*, global_batch: int, micro_batch: int, data_size: int) -> list[Feed]:
    return [
        Feed(
            Numbered(),
            batches=BatchSizes.constant(global_batch),
            micro_batch=micro_batch,
            data_rank=rank,
            data_size=data_size,
            device=torch.device("cpu"),
        )
        for rank in range(data_size)
    ]


@given(
    step=st.integers(1, 100), micro_batch=st.integers(1, 3), waves=st.integers(1, 3), data=st.integers(1, 4)
)
def test_a_step_uses_its_samples_once_whatever_the_layout(
    step: int, micro_batch: int, waves: int, data: int
) -> None:
    size = micro_batch * waves * data
    ranks = feeds(global_batch=size, micro_batch=micro_batch, data_size=data)
    loaded = [feed.load(step) for feed in ranks]
    # Micro-batch by micro-batch, ranks side by side: the order of a single rank.
    order = [int(row[0]) for wave in zip(*loaded, strict=True) for batch in wave for row in batch.tokens]
    assert order == list(range((step - 1) * size, step * size))


def test_labels_are_the_tokens_one_further() -> None:
    ((tokens, labels, borders),) = feeds(global_batch=2, micro_batch=2, data_size=1)[0].load(1)
    assert borders is None
    assert tokens.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert labels.tolist() == [[1, 2, 3, 4], [2, 3, 4, 5]]


def test_documents_end_at_their_borders_and_with_their_row() -> None:
    """Rows 0 1 2 3, 1 2 3 4 and 2 3 4 5."""
    place = {"data_rank": 0, "data_size": 1, "device": torch.device("cpu"), "within_documents": True}
    (batch,) = Feed(Numbered(), batches=BatchSizes.constant(3), micro_batch=3, **place).load(1)  # type: ignore[arg-type]
    assert batch.borders is not None
    assert batch.borders.dtype is torch.int32
    assert batch.borders.tolist() == [0, 4, 7, 8, 10, 12]
