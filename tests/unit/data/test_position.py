"""Where a job goes on in its data when the manifest changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.data.position import Dataset, Position, go_on, stored_position
from megascale.data.reading import open_samples
from megascale.errors import DataError, SettingsError
from megascale.job.data import Data

LENGTH = 4


def position(*datasets: Dataset, seed: int = 1, length: int = LENGTH, next_sample: int = 0) -> Position:
    return Position(seed, length, datasets).at(next_sample)


A, B, C = Dataset("a", 100, 3.0), Dataset("b", 200, 1.0), Dataset("c", 300, 1.0)


def test_a_position_survives_json() -> None:
    stored = replace(position(A, replace(B, weight=0.0, first=7), next_sample=9), begin=4)
    assert Position.read(json.loads(json.dumps(stored.as_json()))) == stored


def test_unchanged_data_goes_on_at_the_next_sample() -> None:
    stored = position(A, B, next_sample=11)
    assert go_on(stored, position(A, B), restart_order=False) == (stored, [])
    alone = position(A, next_sample=11)
    assert go_on(alone, position(replace(A, weight=1.0)), restart_order=False)[1] == []


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (position(A, seed=2), r"seed is 2, the checkpoint was trained with 1: .*restartOrder to true"),
        (position(A, length=8), "sequenceLength is 8, the checkpoint was trained with 4"),
        (position(replace(A, tokens=101)), "a holds 101 tokens, it held 100 when"),
    ],
)
def test_an_order_that_cannot_be_continued_is_refused_or_begun_anew(wanted: Position, message: str) -> None:
    stored = position(A, next_sample=11)
    with pytest.raises(SettingsError, match=message):
        go_on(stored, wanted, restart_order=False)
    begun, notes = go_on(stored, wanted, restart_order=True)
    assert (begun.begin, begun.next_sample, begun.tokens) == (11, 11, 11 * LENGTH)
    assert [dataset.first for dataset in begun.datasets] == [0]
    assert "data is used again" in notes[0]


def test_a_dataset_that_moved_is_the_same_and_said_so() -> None:
    stored = position(A, B, next_sample=11)
    found, notes = go_on(stored, position(A, replace(B, name="d")), restart_order=False)
    assert found == replace(stored, datasets=(A, replace(B, name="d")))
    assert notes == ["b is now d: both hold 200 tokens and are taken to be the same"]


def test_datasets_of_one_size_are_told_apart_by_their_paths() -> None:
    twin = replace(A, name="b")
    stored = position(A, twin, next_sample=10)
    found, _ = go_on(stored, position(twin, A), restart_order=False)
    assert {dataset.name: dataset.first for dataset in found.datasets} == {"a": 5, "b": 5}
    assert found.begin == 10


def files(folder: Path, sizes: dict[str, int]) -> None:
    for number, (name, samples) in enumerate(sizes.items()):
        with IndexedWriter(bin_path(folder / name), idx_path(folder / name), np.dtype("<u2")) as writer:
            writer.append(np.arange(samples * LENGTH + 1, dtype="<u2") + 10_000 * number)
            writer.end_document()


def data(folder: Path, weights: dict[str, float]) -> Data:
    blend = [{"path": str(folder / name), "weight": weight} for name, weight in weights.items()]
    return Data.model_validate(
        {"blend": blend, "sequenceLength": LENGTH, "microBatch": 1, "globalBatch": 1}, by_name=False
    )


@settings(deadline=None)
@given(
    blends=st.lists(
        st.dictionaries(st.sampled_from("xyz"), st.sampled_from([0.001, 1.0, 2.0, 5.0]), min_size=1),
        min_size=2,
        max_size=5,
    ),
    lengths=st.lists(st.integers(0, 40), min_size=5, max_size=5),
)
def test_no_sample_is_used_twice_or_left_out_however_the_blend_changes(
    tmp_path_factory: pytest.TempPathFactory, blends: list[dict[str, float]], lengths: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("data")
    files(folder, {"x": 300, "y": 400, "z": 500})
    place: Position | None = None
    used: list[int] = []
    for weights, count in zip(blends, lengths, strict=False):
        wanted = Position.start(data(folder, weights), seed=1)
        stored = Position.read(json.loads(json.dumps(place.as_json()))) if place else wanted
        place, _ = go_on(stored, wanted, restart_order=False)
        samples = open_samples(data(folder, weights), place)
        used += [int(row[0]) for row in samples.batch(place.next_sample, count)]
        place = place.at(place.next_sample + count)
    assert len(set(used)) == len(used)
    for name, number in (("x", 0), ("y", 1), ("z", 2)):
        alone = open_samples(data(folder, {name: 1.0}), Position.start(data(folder, {name: 1.0}), seed=1))
        own = [first for first in used if first // 10_000 == number]
        assert own == [int(row[0]) for row in alone.batch(0, len(own))]


def test_checkpoints_of_earlier_versions_have_the_next_sample_only() -> None:
    found, notes = stored_position({"step": 3, "nextSample": 24}, position(A))
    assert (found.next_sample, found.tokens, found.begin) == (24, 96, 0)
    assert "does not say which data" in notes[0]
    with pytest.raises(DataError, match="cannot be read"):
        stored_position({"data": {"seed": 1}}, position(A))


def test_a_long_path_is_stored_as_a_digest(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["d" * 100] * 4)
    folder.mkdir(parents=True)
    files(folder, {"x": 3})
    (dataset,) = Position.start(data(folder, {"x": 1.0}), seed=1).datasets
    assert dataset.name.startswith("sha256:")
    assert dataset.tokens == 3 * LENGTH + 1
