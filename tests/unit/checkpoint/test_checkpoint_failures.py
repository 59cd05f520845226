"""Saves that fail or are killed: what was readable before stays readable."""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from megascale.checkpoint import CheckpointStore, Piece, restore, save, verify
from megascale.checkpoint.storage import LocalStorage
from megascale.core.contract.lineage import Commit
from megascale.errors import CheckpointSaveError

if TYPE_CHECKING:
    from conftest import Ranks


# Made here, not in a forked child: a large torch operation there would wait for threads that no fork copies.
BIG = torch.arange(5 << 18, dtype=torch.float32)


def big_piece(mebibytes: int) -> Piece:
    count = mebibytes << 18
    return Piece("big/master", (count,), (0,), (count,), BIG[:count])


def save_alone(
    store: CheckpointStore, step: int, at_point: Callable[[str], None], mebibytes: int = 1
) -> None:
    save(
        store,
        step=step,
        attempt=1,
        parent=None,
        pieces=[big_piece(mebibytes)],
        job_state={"step": step},
        rank_state={},
        layout={},
        rank=0,
        world_size=1,
        agree=lambda ok: ok,
        at_point=at_point,
    )


def nowhere(_point: str) -> None: ...


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], None]], int]]:
    """Starts a function in a child process and returns its process id; all are killed at the end."""
    started = []

    def start(body: Callable[[], None]) -> int:
        pid = os.fork()
        if pid:
            started.append(pid)
            return pid
        try:
            body()
        except Exception:  # noqa: BLE001 - a child must not run on into the test session
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)

    yield start
    for pid in started:
        with contextlib.suppress(ChildProcessError):  # the test has waited for it
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def assert_sound(store: CheckpointStore, commits: list[Commit]) -> None:
    assert store.commits() == commits
    assert store.scan().damaged == []
    for commit in commits:
        assert verify(store, commit).damages == []
        piece = Piece("big/master", (1 << 18,), (0,), (1 << 18,), torch.zeros(1 << 18))
        restore(store, commit, [piece])
        assert torch.equal(piece.tensor, big_piece(1).tensor)


@pytest.mark.parametrize("point", ["save", "commit"])
def test_a_save_killed_at_a_point_leaves_earlier_commits(
    store: CheckpointStore, forked: Callable[..., int], point: str
) -> None:
    save_alone(store, 1, nowhere)

    def body() -> None:
        save_alone(store, 2, lambda here: os.kill(os.getpid(), signal.SIGKILL) if here == point else None)

    _, status = os.waitpid(forked(body), 0)
    assert os.WIFSIGNALED(status)
    assert_sound(store, [Commit(1, 1)])
    assert (store.storage.root / "step-2/attempt-1").exists()
    store.prune(1, {1: None, 2: Commit(1, 1)}, 2)  # attempt 2 has not passed step 2 yet
    assert (store.storage.root / "step-2/attempt-1").exists()


def test_saves_killed_at_random_instants_lose_no_acknowledged_commit(
    tmp_path: Path, forked: Callable[..., int]
) -> None:
    """A child saves step after step and says so; it is killed somewhere in the middle of one."""
    instants = random.Random(7)
    cut_short = 0
    for life in range(12):
        store = CheckpointStore(tmp_path / str(life))
        reader, writer = os.pipe()

        def body(store: CheckpointStore = store, writer: int = writer) -> None:
            for step in range(1, 10_000):
                save_alone(store, step, nowhere)
                os.write(writer, step.to_bytes(2, "little"))

        pid = forked(body)
        os.close(writer)
        os.read(reader, 2)
        select.select([], [], [], instants.uniform(0.0, 0.02))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as pipe:
            acknowledged = 1 + len(pipe.read()) // 2
        commits = store.commits()
        assert len(commits) in (acknowledged, acknowledged + 1)
        assert_sound(store, [Commit(step, 1) for step in range(1, len(commits) + 1)])
        cut_short += len(list(store.storage.root.glob("step-*"))) > len(commits)
    assert cut_short > 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB; where mounting is not allowed, a limit on the size of files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if (
        os.geteuid() == 0
        and shutil.which("mount")
        and subprocess.run(mount, check=False, capture_output=True).returncode == 0
    ):
        yield disk
        subprocess.run(["umount", str(disk)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, before[1]))
    yield disk
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_fails_the_save_and_only_the_save(small_disk: Path) -> None:
    store = CheckpointStore(small_disk / "checkpoints")
    save_alone(store, 1, nowhere)
    with pytest.raises(
        CheckpointSaveError, match=r"step 2 was not saved to .*(No space left|File too large)"
    ):
        save_alone(store, 2, nowhere, mebibytes=5)
    assert not (store.storage.root / "step-2").exists()
    assert_sound(store, [Commit(1, 1)])
    save_alone(store, 2, nowhere)
    assert_sound(store, [Commit(1, 1), Commit(2, 1)])


def test_one_rank_that_cannot_write_fails_the_save_on_all(store: CheckpointStore, ranks: Ranks) -> None:
    ranks.save_flat(store, 1)
    (store.storage.root / "step-2/attempt-1/rank-1.bin").mkdir(parents=True)
    results = ranks.save_all(store, 2, [ranks.pieces(r, 3, 2) for r in range(3)])
    assert all(isinstance(result, CheckpointSaveError) for result in results), results
    assert "another rank failed" in str(results[0])
    assert "File exists" in str(results[1])
    assert store.commits() == [Commit(1, 1)]
    assert sorted(p.name for p in (store.storage.root / "step-2/attempt-1").iterdir()) == ["rank-1.bin"]


def test_a_commit_that_cannot_be_made_fails_the_save_on_all(store: CheckpointStore, ranks: Ranks) -> None:
    store.storage.root.mkdir(parents=True)
    (store.storage.root / "commits").write_text("in the way")
    results = ranks.save_all(store, 2, [ranks.pieces(r, 2, 2) for r in range(2)])
    assert all(isinstance(result, CheckpointSaveError) for result in results), results
    assert not (store.storage.root / "step-2").exists()


def test_a_commit_whose_durability_is_unknown_is_taken_back(
    store: CheckpointStore, ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks.save_flat(store, 1)
    sync = store.storage.sync_entries

    def fail_for_commits(folder: str) -> None:
        if folder == "commits":
            raise OSError(5, "Input/output error")
        sync(folder)

    monkeypatch.setattr(store.storage, "sync_entries", fail_for_commits)
    results = ranks.save_all(store, 2, [ranks.pieces(r, 2, 2) for r in range(2)])
    assert all(isinstance(result, CheckpointSaveError) for result in results), results
    monkeypatch.undo()
    assert store.commits() == [Commit(1, 1)]
    assert not (store.storage.root / "step-2").exists()


def test_a_save_that_failed_can_be_repeated(store: CheckpointStore, ranks: Ranks) -> None:
    def refuse(rank: int, point: str) -> None:
        if (rank, point) == (1, "save"):
            raise OSError(28, "No space left on device")

    results = ranks.save_all(store, 2, [ranks.pieces(r, 2, 2) for r in range(2)], at_point=refuse)
    assert all(isinstance(result, CheckpointSaveError) for result in results), results
    ranks.save_flat(store, 2)
    assert verify(store, Commit(2, 1)).damages == []


def test_an_append_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path)
    storage.append("events/1.jsonl", b"one\n")

    class Full(io.FileIO):
        """A file on a disk that fills up after three bytes of a write."""

        def write(self, data: Any) -> int:
            super().write(data[:3])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, **_buffering: Full(path, mode))
        with pytest.raises(OSError, match="No space left"):
            storage.append("events/1.jsonl", b"two and more\n")
    storage.append("events/1.jsonl", b"two\n")
    assert (tmp_path / "events" / "1.jsonl").read_bytes() == b"one\ntwo\n"
