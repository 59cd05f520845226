from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megascale.data.ramp import BatchSizes
from megascale.engine.feed import Feed
from megascale.errors import InputError

LENGTH = 4


class Numbered:
    """Sample i is i, i + 1, ... so that a sample tells which one it is."""

    def batch(self, first_index: int, count: int) -> npt.NDArray[np.int64]:
        return np.arange(first_index, first_index + count)[:, None] + np.arange(LENGTH + 1)[None, :]

    def documents(self, first_index: int, count: int) -> npt.NDArray[np.int32]:
        """Token 3 is the last of its document."""
        return (self.batch(first_index, count) > 3).astype(np.int32)


def feeds(*, global_batch: int, micro_batch: int, data_size: int) -> list[Feed]:
    return [
        Feed(
            Numbered(),
            batches=BatchSizes.constant(global_batch),
            micro_batch=micro_batch,
            data_rank=rank,
            data_size=data_size,
            device=torch.device("cpu"),
            vocab_size=10**6,
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
    (batch,) = feeds(global_batch=2, micro_batch=2, data_size=1)[0].load(1)
    assert (batch.borders, batch.counted, batch.predictions) == (None, None, 8)
    assert batch.tokens.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert batch.labels.tolist() == [[1, 2, 3, 4], [2, 3, 4, 5]]


def one_rank(*, rows: int, vocab_size: int = 100, **options: Any) -> Feed:
    return Feed(
        Numbered(),
        batches=BatchSizes.constant(rows),
        micro_batch=rows,
        data_rank=0,
        data_size=1,
        device=torch.device("cpu"),
        vocab_size=vocab_size,
        **options,
    )


def test_the_loss_leaves_out_what_follows_a_document() -> None:
    """Rows 0 1 2 3 4, 1 2 3 4 5 and 2 3 4 5 6; 3 is the last token of its document."""
    (batch,) = one_rank(rows=3, loss_across_documents=False).load(1)
    assert batch.counted is not None
    assert batch.borders is None
    assert batch.labels[~batch.counted].tolist() == [4, 4, 4]
    assert batch.predictions == 9


def test_an_id_that_the_model_does_not_know_is_refused_with_its_place() -> None:
    place = "data/x.bin: sample {}, token {}".format
    assert one_rank(rows=2, vocab_size=6, place=place).load(1)
    with pytest.raises(
        InputError, match=r"data/x.bin: sample 1, token 4 has id 5, but .*vocabSize is 5: .*0 to 4"
    ):
        one_rank(rows=2, vocab_size=5, place=place).load(1)


def test_documents_end_at_their_borders_and_with_their_row() -> None:
    """Rows 0 1 2 3, 1 2 3 4 and 2 3 4 5."""
    (batch,) = one_rank(rows=3, within_documents=True).load(1)
    assert batch.borders is not None
    assert batch.borders.dtype is torch.int32
    assert batch.borders.tolist() == [0, 4, 7, 8, 10, 12]
