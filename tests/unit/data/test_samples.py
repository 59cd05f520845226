"""The order in which a job sees its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.data.samples import SampleStream
from megascale.errors import DataError


def make(prefix: Path, tokens: int) -> Path:
    """A dataset whose token n is n, in documents of 7."""
    with IndexedWriter(bin_path(prefix), idx_path(prefix), np.dtype("<i4")) as writer:
        for start in range(0, tokens, 7):
            writer.append(np.arange(start, min(start + 7, tokens)))
            writer.end_document()
    return prefix


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("samples") / "numbers", 1000)


def test_counts(prefix: Path) -> None:
    stream = SampleStream.open(prefix, sequence_length=10, seed=1)
    assert stream.samples_per_epoch == 99  # (1000 - 1) // 10: each needs one token more than its length
    assert stream.tokens_per_epoch == 990


def test_a_sample_is_a_window_and_every_window_comes_once_per_epoch(prefix: Path) -> None:
    stream = SampleStream.open(prefix, sequence_length=10, seed=1)
    for epoch in range(3):
        samples = stream.batch(99 * epoch, 99)
        assert samples.shape == (99, 11)
        assert samples.dtype == np.int64
        assert (np.diff(samples, axis=1) == 1).all()
        assert sorted(samples[:, 0]) == list(range(0, 990, 10))


def test_epochs_and_seeds_have_orders_of_their_own(prefix: Path) -> None:
    stream = SampleStream.open(prefix, sequence_length=10, seed=1)
    other = SampleStream.open(prefix, sequence_length=10, seed=2)
    first, second = stream.batch(0, 99)[:, 0], stream.batch(99, 99)[:, 0]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other.batch(0, 99)[:, 0])


@given(first=st.integers(0, 10**12), count=st.integers(0, 250))
def test_batches_are_made_of_samples_however_they_are_cut(prefix: Path, first: int, count: int) -> None:
    stream = SampleStream.open(prefix, sequence_length=10, seed=7)
    batch = stream.batch(first, count)
    cut = count // 3
    pieces = [stream.batch(first, cut), stream.batch(first + cut, count - cut)]
    assert np.array_equal(batch, np.concatenate(pieces))
    if count:
        assert np.array_equal(batch[-1], stream.sample(first + count - 1))


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 4), (2, 2), (4, 1), (2, 4)])
def test_a_step_has_the_same_samples_on_any_number_of_ranks(
    prefix: Path, ranks: int, micro_batch: int
) -> None:
    stream, global_batch, step = SampleStream.open(prefix, sequence_length=10, seed=1), 8, 5
    first = (step - 1) * global_batch
    seen = [
        stream.batch(first + wave * micro_batch * ranks + rank * micro_batch, micro_batch)
        for wave in range(global_batch // (micro_batch * ranks))
        for rank in range(ranks)
    ]
    assert np.array_equal(np.concatenate(seen), stream.batch(first, global_batch))


def test_exactly_one_sample_is_enough(tmp_path: Path) -> None:
    stream = SampleStream.open(make(tmp_path / "x", 11), sequence_length=10, seed=1)
    assert stream.samples_per_epoch == 1
    assert stream.batch(0, 2).tolist() == [list(range(11))] * 2


@pytest.mark.parametrize("tokens", [0, 1, 10])
def test_less_than_one_sample(tmp_path: Path, tokens: int) -> None:
    with pytest.raises(DataError, match=rf"x\.bin: holds {tokens} tokens, but one sample takes .* 11;"):
        SampleStream.open(make(tmp_path / "x", tokens), sequence_length=10, seed=1)


def test_negative_indices_are_programming_errors(prefix: Path) -> None:
    stream = SampleStream.open(prefix, sequence_length=10, seed=1)
    with pytest.raises(ValueError, match="expected no negative"):
        stream.sample(-1)
