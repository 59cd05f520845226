"""Manifests that contradict themselves, though their digest is that of the commit."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megascale.checkpoint import CheckpointStore, restore, verify
from megascale.checkpoint.manifest import CommitRecord, StoredBox, StoredTensor, digest
from megascale.checkpoint.script import _unpack
from megascale.checkpoint.soundness import ITEM_BYTES, is_tiled
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointCorruptError, InputError

if TYPE_CHECKING:
    from conftest import Ranks

NAME = "embedding.weight/master"
HUGE = (1 << 62) - 1


def rewrite(store: CheckpointStore, commit: Commit, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a manifest and commit the changed one."""
    path = store.storage.root / f"step-{commit.step}/attempt-{commit.attempt}/manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    raw = json.dumps(manifest).encode()
    path.write_bytes(raw)
    commit_file = store.storage.root / f"commits/{commit.step}.{commit.attempt}.json"
    record = CommitRecord.model_validate_json(commit_file.read_bytes())
    commit_file.write_bytes(record.model_copy(update={"manifest_sha256": digest(raw)}).to_bytes())
    return path


def of_box(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["tensors"][NAME]["boxes"][0].update(values)


def of_tensor(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["tensors"][NAME].update(values)


CASES = [
    (of_box(file=9), "box 0: file 9, expected one of the 2 files"),
    (of_box(file=HUGE), f"file {HUGE}, expected one of the 2 files"),
    (of_tensor(dtype="evil"), "dtype 'evil', expected one of bfloat16, bool"),
    (of_tensor(dtype="float64"), "expected 144 for 18 elements of float64"),
    (of_box(shape=[HUGE, 6]), f"elements 0 to {HUGE} of axis 0, expected some of 0 to 7"),
    (of_box(shape=[3, 0]), "of axis 1, expected some of 0 to 6"),
    (of_box(shape=[3]), "2 and 1 entries, expected 2"),
    (of_box(offset=[5, 0]), "elements 5 to 8 of axis 0"),
    (of_box(bytes=HUGE), f"{HUGE} bytes, expected 72 for 18 elements of float32"),
    (of_box(byteOffset=HUGE), "of rank-0.bin, which has"),
    (of_tensor(shape=[HUGE, HUGE, HUGE]), "expected 3"),
    (of_tensor(shape=[1] * 9), "9 dimensions, expected at most 8"),
    (of_tensor(shape=[8, 6]), "boxes of 42 elements, expected 48"),
]


@pytest.mark.parametrize(("change", "message"), CASES, ids=[message[:30] for _, message in CASES])
def test_contradictions_are_named_and_nothing_is_read(
    store: CheckpointStore, ranks: Ranks, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    commit = ranks.save_flat(store, 1)
    path = rewrite(store, commit, change)
    (damage,) = verify(store, commit).damages
    assert damage.message.startswith(f"{path}: tensor '{NAME}': ")
    assert message in damage.message
    with pytest.raises(CheckpointCorruptError):
        restore(store, commit, ranks.pieces(0, 1, None))


def test_numbers_beyond_any_file_are_refused_when_parsed(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 1)
    path = rewrite(store, commit, of_box(bytes=1 << 200))
    (damage,) = verify(store, commit).damages
    assert damage.message.startswith(f"{path}: ")


def test_boxes_that_overlap_are_found_though_they_add_up(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 1)

    manifest = store.manifest(commit).tensors[NAME]
    assert [box.shape for box in manifest.boxes] == [(3, 6), (1, 3), (1, 3), (3, 6)]

    def shifted(manifest: dict[str, Any]) -> None:
        manifest["tensors"][NAME]["boxes"][3]["offset"] = [0, 0]

    rewrite(store, commit, shifted)
    (damage,) = verify(store, commit).damages
    assert (damage.tensor, "boxes overlap" in damage.message) == (NAME, True)


def test_a_huge_file_in_place_of_a_manifest_is_not_read(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 1)
    path = store.storage.root / "step-1/attempt-1/manifest.json"
    with path.open("r+b") as handle:
        handle.truncate(1 << 40)  # sparse
    (damage,) = verify(store, commit).damages
    assert f"{path}: has {1 << 40} bytes, expected at most {1 << 30}" in damage.message
    with (store.storage.root / "commits/1.1.json").open("r+b") as handle:
        handle.truncate(1 << 40)
    assert "bytes, expected at most 65536" in store.scan().damaged[0]


def test_item_sizes_are_those_of_torch() -> None:
    for name, size in ITEM_BYTES.items():
        assert getattr(torch, name).itemsize == size


def test_a_script_s_state_allocates_nothing_that_the_checkpoint_does_not_hold() -> None:
    assert _unpack({"tensor": "a", "shape": [0, 3], "dtype": "int8"}, {}).shape == (0, 3)
    for shape, dtype in (([1 << 50], "float32"), ([0], "evil"), ([0], "load")):
        with pytest.raises(InputError, match="the checkpoint has no values for a"):
            _unpack({"tensor": "a", "shape": shape, "dtype": dtype}, {})


Boxes = st.lists(
    st.tuples(st.tuples(*[st.integers(0, 2)] * 2), st.tuples(*[st.integers(1, 3)] * 2)), max_size=6
)


@given(boxes=Boxes)
def test_tiling_is_covering_every_element_once(boxes: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    shape = (3, 3)
    kept = [(o, s) for o, s in boxes if all(a + b <= n for a, b, n in zip(o, s, shape, strict=True))]
    tensor = StoredTensor(
        dtype="int8",
        shape=shape,
        boxes=tuple(StoredBox(offset=o, shape=s, file=0, byte_offset=0, bytes=1, crc32=0) for o, s in kept),
    )
    counts = [
        sum(all(a <= x < a + b for x, a, b in zip(at, o, s, strict=True)) for o, s in kept)
        for at in product(range(3), range(3))
    ]
    assert is_tiled(tensor) == (set(counts) == {1})
