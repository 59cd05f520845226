from __future__ import annotations

import json
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megascale.checkpoint import CheckpointStore, Piece, SaveReport, restore, verify
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointCorruptError, CheckpointSaveError, InputError

if TYPE_CHECKING:
    from conftest import Ranks


def whole_pieces(ranks: Ranks) -> list[Piece]:
    return [
        Piece(name, shape, (0,) * len(shape), shape, torch.full((ranks.values(name).numel(),), torch.nan))
        for name, shape in ranks.shapes.items()
    ]


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
@pytest.mark.parametrize("writers", [1, 2, 4])
def test_any_number_of_ranks_reads_what_any_number_wrote(
    store: CheckpointStore, ranks: Ranks, writers: int, readers: int
) -> None:
    commit = ranks.save_flat(store, 3, writers)
    for rank in range(readers):
        wanted = ranks.pieces(rank, readers, None)
        restore(store, commit, wanted)
        for got, expected in zip(wanted, ranks.pieces(rank, readers, 3), strict=True):
            assert torch.equal(got.tensor, expected.tensor), got.name


@st.composite
def grids(draw: st.DrawFn, shape: tuple[int, int, int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A cut of a tensor into boxes along random planes."""
    cuts = [
        [0, *sorted(draw(st.sets(st.integers(1, size - 1), max_size=3)) if size > 1 else ()), size]
        for size in shape
    ]
    spans = [list(pairwise(cut)) for cut in cuts]
    return [
        ((a[0], b[0], c[0]), (a[1] - a[0], b[1] - b[0], c[1] - c[0]))
        for a in spans[0]
        for b in spans[1]
        for c in spans[2]
    ]


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_any_cut_restores_into_any_other(ranks: Ranks, data: Any, dtype: torch.dtype) -> None:
    shape = (4, 3, 5)
    whole = torch.arange(60).view(shape).to(dtype)

    def pieces(boxes: list[Any], source: torch.Tensor) -> list[Piece]:
        held = []
        for offset, extent in boxes:
            index = tuple(slice(at, at + size) for at, size in zip(offset, extent, strict=True))
            held.append(Piece("x/master", shape, offset, extent, source[index].reshape(-1).clone()))
        return held

    written = pieces(data.draw(grids(shape)), whole)
    with TemporaryDirectory() as folder:
        store = CheckpointStore(folder)
        results = ranks.save_all(store, 1, [written[::2], written[1::2]])
        assert all(isinstance(result, SaveReport) for result in results), results
        boxes = data.draw(grids(shape))
        wanted = pieces(boxes, torch.zeros(shape, dtype=dtype))
        restore(store, Commit(1, 1), wanted)
        for got, expected in zip(wanted, pieces(boxes, whole), strict=True):
            assert torch.equal(got.tensor, expected.tensor)


def test_a_part_of_a_large_tensor_is_read_without_the_rest(store: CheckpointStore, ranks: Ranks) -> None:
    count = 12 << 20  # 48 MiB
    values = torch.arange(count, dtype=torch.float32)
    whole = Piece("big/master", (12, 1 << 20), (0, 0), (12, 1 << 20), values)
    assert isinstance(ranks.save_all(store, 1, [[whole]])[0], SaveReport)
    with (store.storage.root / "step-1/attempt-1/rank-0.bin").open("r+b") as shard:
        shard.write(b"damage in the first row")
    last = Piece("big/master", (12, 1 << 20), (11, 0), (1, 1 << 20), torch.zeros(1 << 20))
    restore(store, Commit(1, 1), [last])
    assert torch.equal(last.tensor, values[11 << 20 :])
    with pytest.raises(CheckpointCorruptError, match="bytes 0 to 16777216"):
        restore(store, Commit(1, 1), [whole])


def test_states_come_back_with_the_tensors(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 2, 3)
    restored = restore(store, commit, [])
    assert restored.job_state == {"step": 2, "cursor": 0.1}
    assert restored.rank_states == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert restored.layout == {"data": 3}


def test_restore_writes_into_live_parameters(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 1)
    parameter = torch.nn.Parameter(torch.zeros(7, 6))
    live = Piece("embedding.weight/master", (7, 6), (2, 0), (5, 6), parameter.data[2:].view(-1))
    restore(store, commit, [live])
    assert torch.equal(parameter.data[2:], ranks.values("embedding.weight/master", 1)[2:])
    assert not parameter.data[:2].any()


def test_layout_on_disk_is_the_contract(store: CheckpointStore, ranks: Ranks) -> None:
    ranks.save_flat(store, 40, attempt=7, parent=Commit(30, 6))
    root = store.storage.root
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    assert [f for f in files if not f.endswith("commit.json")] == [
        "commits/40.7.json",
        "step-40/attempt-7/manifest.json",
        "step-40/attempt-7/rank-0.bin",
        "step-40/attempt-7/rank-1.bin",
    ]
    manifest = json.loads((root / "step-40/attempt-7/manifest.json").read_text())
    assert manifest["parent"] == {"attempt": 6, "step": 30}
    assert manifest["jobState"] == {"step": 40, "cursor": 0.1}
    assert [f["bytes"] for f in manifest["files"]] == [
        (root / f"step-40/attempt-7/rank-{r}.bin").stat().st_size for r in (0, 1)
    ]
    stored = manifest["tensors"]["embedding.weight/master"]
    assert (stored["dtype"], stored["shape"]) == ("float32", [7, 6])
    box = stored["boxes"][0]
    raw = (root / f"step-40/attempt-7/rank-{box['file']}.bin").read_bytes()[box["byteOffset"] :][
        : box["bytes"]
    ]
    assert raw == ranks.values("embedding.weight/master", 40)[:3].numpy().tobytes()


def test_replicas_must_be_given_once(store: CheckpointStore, ranks: Ranks) -> None:
    both = [ranks.pieces(0, 1, 1), ranks.pieces(0, 1, 1)]
    results = ranks.save_all(store, 1, both)
    assert all(isinstance(result, CheckpointSaveError) for result in results)
    assert "84 of 42 elements" in str(results[0])
    assert store.commits() == []


def test_a_hole_is_found_before_the_commit(store: CheckpointStore, ranks: Ranks) -> None:
    results = ranks.save_all(store, 1, [ranks.pieces(0, 2, 1)[1:], ranks.pieces(1, 2, 1)])
    assert "pieces hold" in str(results[0])
    assert store.commits() == []


def test_saving_a_committed_step_again_changes_nothing(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 5)
    before = {p: p.stat().st_mtime_ns for p in store.storage.root.rglob("*") if p.is_file()}
    results = ranks.save_all(store, 5, [ranks.pieces(r, 2, 5) for r in range(2)])
    assert [result.bytes for result in results if isinstance(result, SaveReport)] == [0, 0]
    assert before == {p: p.stat().st_mtime_ns for p in store.storage.root.rglob("*") if p.is_file()}
    assert verify(store, commit).damages == []


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece("absent/master", (2,), (0,), (2,), torch.zeros(2)), "no tensor 'absent/master'"),
        (
            Piece("embedding.weight/master", (8, 6), (0, 0), (1, 6), torch.zeros(6)),
            r"float32 \(7, 6\), this job needs float32 \(8, 6\)",
        ),
        (
            Piece("embedding.weight/master", (7, 6), (0, 0), (1, 6), torch.zeros(6, dtype=torch.bfloat16)),
            "this job needs bfloat16",
        ),
    ],
)
def test_another_model_is_named_and_nothing_is_filled(
    store: CheckpointStore, ranks: Ranks, piece: Piece, message: str
) -> None:
    commit = ranks.save_flat(store, 1)
    wanted = [*whole_pieces(ranks), piece]
    with pytest.raises(InputError, match=message):
        restore(store, commit, wanted)
    assert all(p.tensor.isnan().all() for p in wanted[:-1])


def test_states_that_json_cannot_hold_are_refused(store: CheckpointStore, ranks: Ranks) -> None:
    from megascale.checkpoint.manifest import RankIndex, ShardFile

    with pytest.raises(ValueError, match="finite"):
        RankIndex(
            rank=0, file=ShardFile(name="rank-0.bin", bytes=0), tensors={}, rank_state={"x": float("nan")}
        )
