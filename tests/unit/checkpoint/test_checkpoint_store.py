from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from megascale.checkpoint import CheckpointStore, PruneReport, SaveReport, restore, verify
from megascale.core.contract.lineage import Commit, newest
from megascale.errors import CheckpointSaveError, InputError

if TYPE_CHECKING:
    from conftest import Ranks


def folders(store: CheckpointStore) -> list[str]:
    return sorted(str(path.relative_to(store.storage.root)) for path in store.storage.root.glob("step-*/*"))


def test_commits_are_listed_in_order_of_step(store: CheckpointStore, ranks: Ranks) -> None:
    for step in (100, 20, 3):
        ranks.save_flat(store, step)
    assert store.commits() == [Commit(3, 1), Commit(20, 1), Commit(100, 1)]


def test_a_store_that_was_never_written_is_empty(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "nothing")
    assert store.commits() == []
    assert store.prune(1, {1: None}, 1).removed == []
    assert not (tmp_path / "nothing").exists()


def test_of_two_that_commit_at_once_one_wins(store: CheckpointStore, ranks: Ranks) -> None:
    commit = ranks.save_flat(store, 1)
    raw = (store.storage.root / "step-1/attempt-1/manifest.json").read_bytes()
    record = store.record(commit)
    store.remove(commit)
    barrier = threading.Barrier(8)

    def attempt(index: int) -> bool:
        source = f"step-1/attempt-1/source-{index}"
        store.storage.write(source, raw + bytes([index]))
        barrier.wait()
        try:
            store.storage.publish(source, "commits/1.1.json")
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert sum(won) == 1
    assert (store.storage.root / "commits/1.1.json").read_bytes()[-1] == won.index(True)
    assert record.commit == commit


def test_everything_is_durable_before_the_name_that_makes_it_exist(
    store: CheckpointStore, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, link = os.fsync, os.link

    def record_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(str(path.relative_to(store.storage.root.parent)))
        fsync(descriptor)

    def record_link(source: Path, target: Path) -> None:
        events.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "link", record_link)
    ranks.save_flat(store, 1, 1)
    folder = "checkpoints/step-1/attempt-1"
    before, after = events[: events.index("link")], events[events.index("link") :]
    files = [f"{folder}/{name}" for name in ("rank-0.bin", "manifest.json", "commit.json")]
    assert [event for event in before if event in files] == files
    last_file = before.index(files[-1])
    for parent in (folder, "checkpoints/step-1", "checkpoints", "."):
        assert parent in before[last_file:], parent
    assert "checkpoints" in before[before.index("checkpoints/commits") :]
    assert after[:2] == ["link", "checkpoints/commits"]


def test_publishing_the_same_commit_twice_is_harmless_another_one_is_refused(
    store: CheckpointStore, ranks: Ranks
) -> None:
    commit = ranks.save_flat(store, 1)
    folder = store.storage.root / "step-1/attempt-1"
    raw, record = (folder / "manifest.json").read_bytes(), store.record(commit)

    def publish(digest: str) -> None:
        (folder / "manifest.json").unlink()
        (folder / "commit.json").unlink()
        store.publish(raw, record.model_copy(update={"manifest_sha256": digest}))

    publish(record.manifest_sha256)
    with pytest.raises(CheckpointSaveError, match="already committed with other content"):
        publish("0" * 64)
    assert store.record(commit) == record


def test_prune_keeps_the_newest_on_the_lineage(store: CheckpointStore, ranks: Ranks) -> None:
    for step in (10, 20, 30, 40):
        ranks.save_flat(store, step)
    report = store.prune(2, {1: None}, 1)
    assert report.removed == [Commit(10, 1), Commit(20, 1)]
    assert store.commits() == [Commit(30, 1), Commit(40, 1)]
    assert folders(store) == ["step-30/attempt-1", "step-40/attempt-1"]
    assert not verify(store, Commit(30, 1)).damages


def test_a_late_commit_of_a_stale_attempt_is_never_chosen_and_is_pruned(
    store: CheckpointStore, ranks: Ranks
) -> None:
    """Attempt 1 stops just before it commits step 20; attempt 2 resumes from 10 and commits 20 and 30."""
    first = ranks.save_flat(store, 10)
    stopped, resumed = threading.Event(), threading.Event()

    def stop(_rank: int, point: str) -> None:
        if point == "commit":
            stopped.set()
            assert resumed.wait(20)

    with ThreadPoolExecutor(1) as pool:
        stale = pool.submit(ranks.save_all, store, 40, [ranks.pieces(0, 1, 40)], at_point=stop)
        assert stopped.wait(20)
        for step in (20, 30):
            ranks.save_flat(store, step, attempt=2, parent=first)
        resumed.set()
        assert isinstance(stale.result()[0], SaveReport)
    assert Commit(40, 1) in store.commits()
    lineage = {1: None, 2: first}
    assert newest(store.commits(), lineage, 2) == Commit(30, 2)
    assert store.prune(5, lineage, 2).removed == [Commit(40, 1)]
    assert store.commits() == [first, Commit(20, 2), Commit(30, 2)]


def test_a_branch_cut_by_a_rollback_is_pruned(store: CheckpointStore, ranks: Ranks) -> None:
    for step in (10, 20, 30):
        ranks.save_flat(store, step)
    ranks.save_flat(store, 15, attempt=2, parent=Commit(10, 1))
    report = store.prune(3, {1: None, 2: Commit(10, 1)}, 2)
    assert report.removed == [Commit(20, 1), Commit(30, 1)]


def test_prune_leaves_newer_attempts_and_saves_under_way_alone(store: CheckpointStore, ranks: Ranks) -> None:
    first = ranks.save_flat(store, 10)
    second = ranks.save_flat(store, 20, attempt=2, parent=first)
    ranks.save_flat(store, 15, attempt=3, parent=first)
    for orphan in ("step-12/attempt-1", "step-20/attempt-1", "step-25/attempt-1", "step-12/attempt-2",
                   "step-12/attempt-3"):  # fmt: skip
        (store.storage.root / orphan).mkdir(parents=True)
        (store.storage.root / orphan / "rank-0.bin").write_bytes(b"partial")
    report = store.prune(1, {1: None, 2: first}, 2)
    assert report.removed == [Commit(10, 1), Commit(12, 1), Commit(20, 1)]
    assert store.commits() == [Commit(15, 3), second]
    assert folders(store) == [
        "step-12/attempt-2",
        "step-12/attempt-3",
        "step-15/attempt-3",
        "step-20/attempt-2",
        "step-25/attempt-1",
    ]


def test_a_removal_cut_short_leaves_no_half_commit(
    store: CheckpointStore, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks.save_flat(store, 1)
    ranks.save_flat(store, 2)
    storage = store.storage

    def refuse(_name: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "remove_folder", refuse)
    report = store.prune(1, {1: None}, 1)
    assert report.problems == ["cannot remove step-1/attempt-1: Permission denied"]
    assert store.commits() == [Commit(2, 1)]
    monkeypatch.undo()
    # What the failed removal left has no commit; the next attempt takes it away.
    assert store.prune(1, {1: None, 2: Commit(2, 1)}, 2).removed == [Commit(1, 1)]
    assert folders(store) == ["step-2/attempt-1"]


@pytest.mark.parametrize("broken", ["commits", "step-1"])
def test_a_folder_that_cannot_be_listed_is_a_problem_and_nothing_is_removed(
    store: CheckpointStore, ranks: Ranks, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    ranks.save_flat(store, 1)
    ranks.save_flat(store, 2)
    list_names = store.storage.names

    def names(folder: str) -> list[str]:
        if folder == broken:
            raise OSError(errno.ESTALE, "Stale file handle")
        return list_names(folder)

    monkeypatch.setattr(store.storage, "names", names)
    report = store.prune(1, {1: None}, 1)
    assert report.removed == []
    assert report.problems == [f"cannot list {store.storage.root / broken}: Stale file handle"]
    monkeypatch.undo()
    assert store.commits() == [Commit(1, 1), Commit(2, 1)]
    assert store.prune(1, {1: None}, 1).removed == [Commit(1, 1)]


def test_a_commit_that_cannot_be_read_is_a_problem(
    store: CheckpointStore, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks.save_flat(store, 1)

    def read(_name: str) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(store.storage, "read", read)
    assert "1.1.json: Input/output error" in store.prune(1, {1: None}, 1).summary()


def test_problems_of_a_removal_are_one_line() -> None:
    assert PruneReport([], []).summary() == ""
    assert PruneReport([], ["a"]).summary() == "a"
    assert PruneReport([], ["a", "b", "c"]).summary() == "a (and 2 more)"


def test_keep_below_one_is_refused(store: CheckpointStore) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        store.prune(0, {1: None}, 1)


@pytest.mark.parametrize("uri", ["s3://bucket/run", "gs://bucket", "memory://x", "file://host/share"])
def test_a_scheme_that_is_not_supported_is_named(uri: str) -> None:
    with pytest.raises(InputError, match="is not supported; use a path or file:///path"):
        CheckpointStore(uri)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        CheckpointStore(tmp_path / "file")


def test_file_uris_are_paths(tmp_path: Path, ranks: Ranks) -> None:
    commit = ranks.save_flat(CheckpointStore(f"file://{tmp_path}/with%20space"), 1)
    restore(CheckpointStore(tmp_path / "with space"), commit, ranks.pieces(0, 1, None))
