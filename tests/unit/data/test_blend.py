"""Blends by weight, and documents within packed samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascale.data.blend import _PERIOD, BlendedStream
from megascale.data.indexed import IndexedTokens, IndexedWriter, bin_path, idx_path
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


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3),
    first=st.integers(0, 10**12),
    count=st.integers(1, 300),
)
def test_any_stretch_holds_the_datasets_in_proportion(
    streams: list[SampleStream], weights: list[float], first: int, count: int
) -> None:
    blend = BlendedStream.of(streams, weights)
    rows = blend.batch(first, count)[:, 0]
    for dataset, weight in enumerate(weights):
        expected = count * max(weight / sum(weights), 1 / _PERIOD)
        assert abs(int((rows == dataset + 1).sum()) - expected) < 3 + count * 3 / _PERIOD


def test_each_dataset_is_read_in_its_own_order_without_gaps(streams: list[SampleStream]) -> None:
    blend = BlendedStream.of(streams, [1, 2.5, 6])
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for index in range(2 * _PERIOD + 100):
        dataset, sample = blend.locate(index)
        seen[dataset].append(sample)
    assert all(samples == list(range(len(samples))) for samples in seen.values())


def test_a_manifests_blend_is_opened(tmp_path: Path) -> None:
    parts = [{"path": str(write(tmp_path / str(n), [[[n] * 50]])), "weight": n + 1.0} for n in range(2)]
    data = Data.model_validate({"blend": parts, "sequenceLength": 4, "microBatch": 1, "globalBatch": 1})
    samples = open_samples(data, seed=1)
    rows = samples.batch(0, 3000)
    assert abs(rows[:, 0].mean() - 2 / 3) < 0.01
    (tmp_path / "1.bin").unlink()
    with pytest.raises(DataError, match=r"1\.bin: no such file"):
        open_samples(data, seed=1)


def test_documents_are_numbered_within_a_sample(tmp_path: Path) -> None:
    lengths = [3, 1, 10, 2, 0, 5, 7]
    write(tmp_path / "x", [[[n] * length] for n, length in enumerate(lengths)])
    stream = SampleStream.open(tmp_path / "x", 9, seed=0)
    for index in range(stream.samples_per_epoch):
        row, found = stream.sample(index)[:-1], stream.documents(index, 1)[0]
        assert found[0] == 0
        borders = np.diff(found) > 0
        assert (borders == (np.diff(row) != 0)).all(), (row, found)


def test_a_document_of_several_sequences_has_no_borders_inside(tmp_path: Path) -> None:
    write(tmp_path / "x", [[[1, 1], [1, 1, 1]], [[2, 2]], [[3], [3], [3, 3]]])
    stream = SampleStream.open(tmp_path / "x", 10, seed=0)
    assert stream.documents(0, 1).tolist() == [[0, 0, 0, 0, 0, 1, 1, 2, 2, 2]]


def test_documents_of_prepared_text_end_with_the_end_of_document(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "x" * (n % 7)}) for n in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepare([str(tmp_path / "a.jsonl")], tmp_path / "x")
    assert IndexedTokens.open(tmp_path / "x").document_starts().base is not None
    stream = SampleStream.open(tmp_path / "x", 16, seed=3)
    rows, found = stream.batch(0, 40)[:, :-1], stream.documents(0, 40)
    assert ((np.diff(found, axis=1) == 1) == (rows[:, :-1] == 256)).all()
