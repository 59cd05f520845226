from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megascale.checkpoint import CheckpointStore, restore, verify
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from conftest import Ranks


def flip(path: Path, at: int, mask: int = 0x10) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= mask
    path.write_bytes(raw)


def shard(store: CheckpointStore, rank: int = 0) -> Path:
    return store.storage.root / f"step-1/attempt-1/rank-{rank}.bin"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, ranks: Ranks, position: float, bit: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("flip"))
    commit = ranks.save_flat(store, 1)
    at = int(position * shard(store).stat().st_size)
    flip(shard(store), at, 1 << bit)
    with pytest.raises(CheckpointCorruptError, match=r"rank-0\.bin: bytes \d+ to \d+: CRC-32") as caught:
        restore(store, commit, ranks.pieces(0, 1, None))
    assert (caught.value.step, caught.value.attempt) == (1, 1)
    (damage,) = verify(store, commit).damages
    start, end = (int(word) for word in damage.message.split(": ")[1].split() if word.isdigit())
    assert start <= at < end


def test_a_damaged_box_is_not_copied(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 1, 1)
    flip(shard(store), 4)
    wanted = ranks.pieces(0, 1, None)
    with pytest.raises(CheckpointCorruptError):
        restore(store, commit, wanted)
    assert all(piece.tensor.isnan().all() for piece in wanted)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_shard_of_another_size_is_found(store: CheckpointStore, ranks: Ranks, change: int) -> None:
    commit = ranks.save_flat(store, 1)
    raw = shard(store, 1).read_bytes()
    shard(store, 1).write_bytes(raw[:change] if change < 0 else raw + b"\0")
    with pytest.raises(
        CheckpointCorruptError, match=rf"rank-1\.bin: ends at byte {len(raw) + change}, {len(raw)}"
    ):
        restore(store, commit, ranks.pieces(0, 1, None))
    assert "ends at byte" in verify(store, commit).damages[0].message


def test_a_missing_shard_is_found(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 1)
    shard(store, 1).unlink()
    with pytest.raises(CheckpointCorruptError, match=r"rank-1\.bin: the file is missing"):
        restore(store, commit, ranks.pieces(0, 1, None))


def test_verify_lists_all_damage_not_the_first(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 1)
    flip(shard(store), 0)
    flip(shard(store), shard(store).stat().st_size - 1)
    shard(store, 1).unlink()
    report = verify(store, commit)
    assert [damage.tensor for damage in report.damages] == [
        "embedding.weight/master",
        "layers.0.norm.weight/master",
        None,
    ]


@pytest.mark.parametrize("damage", ["torn", "flipped", "edited", "missing", "replaced"])
def test_a_damaged_manifest_is_found(store: CheckpointStore, ranks: Ranks, damage: str) -> None:
    commit = ranks.save_flat(store, 1)
    manifest = store.storage.root / "step-1/attempt-1/manifest.json"
    match damage:
        case "torn":
            manifest.write_bytes(manifest.read_bytes()[:100])
        case "flipped":
            flip(manifest, 50)
        case "edited":
            manifest.write_bytes(manifest.read_bytes().replace(b'"cursor":0.1', b'"cursor":0.2'))
        case "missing":
            manifest.unlink()
        case "replaced":
            ranks.save_flat(store, 2)
            manifest.write_bytes((store.storage.root / "step-2/attempt-1/manifest.json").read_bytes())
    with pytest.raises(CheckpointCorruptError, match=r"manifest\.json"):
        restore(store, commit, [])
    assert verify(store, commit).damages


@pytest.mark.parametrize("raw", [b"", b'{"version":1,"st', b"null", b"\xff\xfe"])
def test_a_torn_commit_is_no_commit(store: CheckpointStore, ranks: Ranks, raw: bytes) -> None:
    ranks.save_flat(store, 1)
    ranks.save_flat(store, 2)
    (store.storage.root / "commits/2.1.json").write_bytes(raw)
    (store.storage.root / "commits/notes.txt").write_text("hello")
    scan = store.scan()
    assert [record.commit for record in scan.records] == [Commit(1, 1)]
    assert len(scan.damaged) == 1
    assert scan.damaged[0].startswith("commits/2.1.json: damaged")
    assert scan.foreign == ["commits/notes.txt"]


def test_a_commit_renamed_to_another_step_is_no_commit(store: CheckpointStore, ranks: Ranks) -> None:
    ranks.save_flat(store, 1)
    commits = store.storage.root / "commits"
    (commits / "1.1.json").rename(commits / "9.1.json")
    assert store.commits() == []
    assert "says step 1" in store.scan().damaged[0]
