"""The files of a node's loader on tmpfs: their names, and the removal of those whose loader is gone.

A loader holds a lock on its memory file, so that files of one that was killed while it started are known to
have no owner, whatever the process namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

MEMORY: Final = ".data"
SOCKET: Final = ".sock"
_BEGUN: Final = ".new"
_TMPFS: Final = Path("/dev/shm")  # noqa: S108 - the prefix differs by user, run and node


def folder() -> Path:
    """Return the folder of the files: tmpfs, else the folder for temporary files."""
    return _TMPFS if os.access(_TMPFS, os.W_OK) else Path(tempfile.gettempdir())


def loader_prefix(run_dir: Path, node: str, attempt: int) -> Path:
    """Return the prefix of the files of a node's loader, one per run, node and attempt.

    It is a hash because the path of a socket has at most 107 bytes.
    """
    name = f"{run_dir.absolute()}/{node}/{attempt}"
    return folder() / f"{_own_names()}{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def create_memory(path: Path, size: int) -> int:
    """Create the memory file and return a descriptor that holds its lock for as long as it is open.

    Raises:
        OSError: there is no room for it.
    """
    begun = path.with_name(path.name + _BEGUN)  # not a name that others look at before it is locked
    begun.unlink(missing_ok=True)
    descriptor = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        begun.rename(path)
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        for left in (begun, path):
            left.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


def remove_ownerless(where: Path) -> int:
    """Remove this user's loader files in `where` whose loader has ended; returns how many memory files."""
    removed = 0
    for memory in where.glob(f"{_own_names()}*{MEMORY}"):
        with contextlib.suppress(OSError):
            removed += _remove_if_unlocked(memory)
    for address in where.glob(f"{_own_names()}*{SOCKET}"):
        # a loader removes its memory file first, once every rank is connected
        if not address.with_suffix(MEMORY).exists():
            with contextlib.suppress(OSError):
                address.unlink()
    return removed


def _remove_if_unlocked(memory: Path) -> bool:
    descriptor = os.open(memory, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        memory.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _own_names() -> str:
    return f"megascale-loader-{os.getuid()}-"
