"""Where snapshots go, and that they go away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megascale.checkpoint import snapshot_folders as folders


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "demo"


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for a tmpfs."""
    monkeypatch.setattr(folders, "is_tmpfs", lambda folder: folder == tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    return tmp_path / "shm"


def test_memory_comes_first_and_is_private(run: Path, memory: Path) -> None:
    in_memory, on_disk = folders.make_folders(run, "node-0", memory)
    assert in_memory.is_relative_to(memory / f"megascale-{os.getuid()}")
    assert in_memory.parent.name.startswith("demo-")
    for folder in (in_memory, in_memory.parent, in_memory.parent.parent):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert on_disk == run / "snapshots" / "node-0"


def test_runs_of_the_same_name_do_not_share_a_folder(tmp_path: Path, memory: Path) -> None:
    one, other = (folders.make_folders(tmp_path / place / "demo", "node-0", memory)[0] for place in "ab")
    assert one != other


def test_without_a_tmpfs_they_go_to_disk(run: Path, tmp_path: Path) -> None:
    assert folders.make_folders(run, "node-0", tmp_path) == (run / "snapshots" / "node-0",)
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_somebody_put_there_is_not_followed(run: Path, memory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (memory / f"megascale-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    assert folders.make_folders(run, "node-0", memory) == (run / "snapshots" / "node-0",)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_dev_shm_of_this_machine_is_found() -> None:
    mounted = "/dev/shm tmpfs" in Path("/proc/self/mounts").read_text()
    assert folders.is_tmpfs(folders.SHARED_MEMORY) == mounted
    assert not folders.is_tmpfs(Path(__file__).parent)


def test_removal_spares_the_nodes_that_run(run: Path, memory: Path) -> None:
    made = {node: folders.make_folders(run, node, memory) for node in ("node-0", "node-1", "node-2")}
    for places in made.values():
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            (place / "0.snapshot").touch()
    folders.remove_folders(run, only="node-1", shared_memory=memory)
    assert [node for node, places in made.items() if any(p.exists() for p in places)] == ["node-0", "node-2"]
    folders.remove_folders(run, keep=["node-2"], shared_memory=memory)
    assert [node for node, places in made.items() if any(p.exists() for p in places)] == ["node-2"]
    folders.remove_folders(run, shared_memory=memory)
    assert not (run / "snapshots").exists()
    assert list((memory / f"megascale-{os.getuid()}").iterdir()) == []
