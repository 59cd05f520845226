"""Files of loaders that were killed are removed, and those of loaders that run are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megascale.data.loader_files import create_memory, loader_prefix, remove_ownerless


def names(folder: Path) -> set[str]:
    return {path.name.removeprefix(f"megascale-loader-{os.getuid()}-") for path in folder.iterdir()}


def test_only_files_without_an_owner_are_removed(tmp_path: Path) -> None:
    prefix = f"megascale-loader-{os.getuid()}-"
    owned = create_memory(tmp_path / f"{prefix}a.data", 4096)
    gone = create_memory(tmp_path / f"{prefix}b.data", 4096)
    for name in (f"{prefix}a.sock", f"{prefix}b.sock", f"{prefix}c.sock", "megascale-loader-other.data"):
        (tmp_path / name).touch()
    os.close(gone)
    assert remove_ownerless(tmp_path) == 1
    assert names(tmp_path) == {"a.data", "a.sock", "megascale-loader-other.data"}
    os.close(owned)
    assert remove_ownerless(tmp_path) == 1
    assert names(tmp_path) == {"megascale-loader-other.data"}


def test_the_copy_of_a_forked_loader_keeps_the_lock(tmp_path: Path) -> None:
    owner = create_memory(tmp_path / f"megascale-loader-{os.getuid()}-a.data", 4096)
    copy = os.dup(owner)  # shares the lock, as a forked process does
    os.close(owner)
    assert remove_ownerless(tmp_path) == 0
    os.close(copy)
    assert remove_ownerless(tmp_path) == 1


def test_memory_that_does_not_fit_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        create_memory(tmp_path / "a.data", 4096)
    assert list(tmp_path.iterdir()) == []


def test_every_attempt_of_every_node_of_every_run_has_names_of_its_own(tmp_path: Path) -> None:
    prefixes = {
        loader_prefix(tmp_path / run, node, attempt)
        for run in ("a", "b")
        for node in ("node-0", "node-1")
        for attempt in (1, 2)
    }
    assert len(prefixes) == 8
    assert all(len(f"{prefix}.sock") <= 107 for prefix in prefixes)
