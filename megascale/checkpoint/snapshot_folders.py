"""Folders for the snapshots of a run: one in memory per node, or one in the run folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Final

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the folders below belong to the user, mode 0700


def make_folders(run: Path, node: str, shared_memory: Path = SHARED_MEMORY) -> tuple[Path, ...]:
    """The node's folders in order of preference: in memory, created here if possible, and on disk."""
    on_disk, in_memory = _on_disk(run) / node, _in_memory(run, shared_memory) / node
    try:
        _make_private(in_memory, shared_memory)
    except OSError:
        return (on_disk,)
    return (in_memory, on_disk)


def snapshot_file(folder: Path, local_rank: int) -> Path:
    """The snapshot file of a process; it is named by local rank, because global ranks can move."""
    return folder / f"{local_rank}.snapshot"


def remove_folders(
    run: Path, *, only: str = "", keep: Collection[str] = (), shared_memory: Path = SHARED_MEMORY
) -> None:
    """Remove the snapshots of the node `only`, or of every node that is not in `keep`."""
    for root in (_in_memory(run, shared_memory), _on_disk(run)):
        for folder in root.glob(only or "*"):
            if folder.name not in keep:
                shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not empty, or not there
            root.rmdir()


def is_tmpfs(folder: Path) -> bool:
    """Whether the folder itself is a mounted tmpfs."""
    with Path("/proc/self/mounts").open() as mounts:
        return any(line.split()[1:3] == [str(folder), "tmpfs"] for line in mounts)


def _in_memory(run: Path, shared_memory: Path) -> Path:
    digest = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:12]
    return shared_memory / f"megascale-{os.getuid()}" / f"{run.resolve().name}-{digest}"


def _on_disk(run: Path) -> Path:
    return run / "snapshots"


def _make_private(folder: Path, shared_memory: Path) -> None:
    """Create `folder` and its parents below `shared_memory`; refuse folders of other users."""
    if not is_tmpfs(shared_memory):
        raise FileNotFoundError(f"{shared_memory} is not a tmpfs")
    below = shared_memory
    for name in folder.relative_to(shared_memory).parts:
        below = below / name
        below.mkdir(mode=0o700, exist_ok=True)
        status = below.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(f"{below} belongs to another user")
