"""Blends by weight, and documents within packed samples."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascale.data.blend import Blend, Shares
from megascale.data.indexed import IndexedTokens, IndexedWriter, bin_path, idx_path
from megascale.data.position import Position
from megascale.data.prepare import prepare
from megascale.data.reading import open_samples
from megascale.data.samples import SampleStream
from megascale.errors import DataError
from megascale.job.data import Data


def write(prefix: Path, documents: list[list[list[int]]]) -> Path:
    """A dataset of documents of sequences of tokens."""
    with IndexedWriter(bin_path(prefix), idx_path(prefix), np.dtype("<u2")) as writer:
        for document in documents:
            for number, sequence in enumerate(document):
                if number:
                    writer._end_sequence()
                writer.append(np.asarray(sequence, dtype="<u2"))
            writer.end_document()
    return prefix


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[SampleStream]:
    """Three datasets whose tokens tell which one they are of."""
    folder = tmp_path_factory.mktemp("blend")
    return [
        SampleStream.open(write(folder / str(n), [[[n + 1] * (4 * size + 1)]]), 4, seed=5)
        for n, size in enumerate((10, 300, 5000))
    ]


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=64),
    count=st.integers(0, 10**12),
)
def test_every_dataset_has_given_its_share_whatever_its_weight(weights: list[float], count: int) -> None:
    given = Shares.of(weights).given(count)
    assert sum(given) == count
    total = sum(map(Fraction, weights))
    for part, weight in zip(given, weights, strict=True):
        assert abs(part - count * Fraction(weight) / total) <= len(weights) / 2


def test_a_weight_of_a_millionth_gives_one_sample_in_a_million() -> None:
    shares = Shares.of([1.0, 1e-6])
    assert shares.given(10**9) == [10**9 - 1000, 1000]
    assert shares.given(1000) == [1000, 0]


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.5, 6.0, 300.0]), min_size=3, max_size=9))
def test_each_dataset_is_read_in_its_own_order_without_gaps(weights: list[float]) -> None:
    if not any(weights):
        weights = [*weights, 1.0]
    shares = Shares.of(weights)
    seen: dict[int, list[int]] = {dataset: [] for dataset in range(len(weights))}
    for index in range(1000):
        assert shares.given(index) == [len(samples) for samples in seen.values()]
        dataset, turn = shares.locate(index)
        seen[dataset].append(turn)
    assert all(samples == list(range(len(samples))) for samples in seen.values())


def test_weights_that_cannot_be_used_are_refused() -> None:
    for weights in ([], [0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="weights"):
            Shares.of(weights)


def test_a_blend_reads_the_samples_that_the_shares_name(streams: list[SampleStream]) -> None:
    blend = Blend.of(streams, [1, 2.5, 6], begin=100, firsts=[7, 0, 3])
    rows = blend.batch(130, 50)
    for row, index in enumerate(range(130, 180)):
        dataset, sample = blend.locate(index)
        assert (rows[row] == streams[dataset].sample(sample)).all()
    assert blend.locate(100)[1] == [7, 0, 3][blend.locate(100)[0]]
    with pytest.raises(ValueError, match="expected 100"):
        blend.batch(99, 1)


def test_a_manifests_blend_is_opened(tmp_path: Path) -> None:
    parts = [{"path": str(write(tmp_path / str(n), [[[n] * 50]])), "weight": n + 1.0} for n in range(2)]
    data = Data.model_validate({"blend": parts, "sequenceLength": 4, "microBatch": 1, "globalBatch": 1})
    position = Position.start(data, seed=1)
    samples = open_samples(data, position)
    rows = samples.batch(0, 3000)
    assert abs(rows[:, 0].mean() - 2 / 3) < 0.01
    (tmp_path / "1.bin").unlink()
    with pytest.raises(DataError, match=r"1\.bin: no such file"):
        open_samples(data, position)


def test_documents_are_numbered_within_a_sample(tmp_path: Path) -> None:
    lengths = [3, 1, 10, 2, 0, 5, 7]
    write(tmp_path / "x", [[[n] * length] for n, length in enumerate(lengths)])
    stream = SampleStream.open(tmp_path / "x", 9, seed=0)
    for index in range(stream.samples_per_epoch):
        row, found = stream.sample(index), stream.documents(index, 1)[0]
        assert found[0] == 0
        borders = np.diff(found) > 0
        assert (borders == (np.diff(row) != 0)).all(), (row, found)


def test_a_document_of_several_sequences_has_no_borders_inside(tmp_path: Path) -> None:
    write(tmp_path / "x", [[[1, 1], [1, 1, 1]], [[2, 2]], [[3], [3], [3, 3]]])
    stream = SampleStream.open(tmp_path / "x", 10, seed=0)
    assert stream.documents(0, 1).tolist() == [[0, 0, 0, 0, 0, 1, 1, 2, 2, 2, 2]]


def test_documents_of_prepared_text_end_with_the_end_of_document(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "x" * (n % 7)}) for n in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "x")
    assert IndexedTokens.open(tmp_path / "x").document_starts().base is not None
    stream = SampleStream.open(tmp_path / "x", 16, seed=3)
    rows, found = stream.batch(0, 40), stream.documents(0, 40)
    assert ((np.diff(found, axis=1) == 1) == (rows[:, :-1] == 256)).all()
