"""File system access of checkpoints.

Names are relative to the root, with forward slashes. A file is durable after an fsync of the file
and of every directory on its path; `sync` does the latter.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from megascale.errors import InputError

_WRITE_BUFFER_BYTES = 1 << 20
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+:", re.IGNORECASE)


class LocalStorage:
    """A folder on a local or shared POSIX file system that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root_is_durable = False

    def path(self, name: str) -> Path:
        return self.root / name

    def create(self, name: str) -> BinaryIO:
        """Open a new file for writing and create its folders.

        Raises:
            FileExistsError: the file exists; it is not changed.
        """
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb", buffering=_WRITE_BUFFER_BYTES)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Create a file. `durable` covers its contents but not its directory entry (see `sync`)."""
        with self.create(name) as handle:
            handle.write(data)
            handle.flush()
            if durable:
                os.fsync(handle.fileno())

    def append(self, name: str, data: bytes) -> None:
        """Append to a file that only this process writes; creates it.

        Raises:
            OSError: nothing is appended.
        """
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as handle:
            size = handle.tell()
            try:
                if handle.write(data) != len(data):
                    raise OSError(errno.ENOSPC, f"{path} could not be written whole")
            except OSError:
                handle.truncate(size)
                raise

    def size(self, name: str) -> int:
        """Size of a file in bytes; 0 if it does not exist."""
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return 0

    def publish(self, source: str, target: str) -> None:
        """Give the finished file `source` the name `target`, atomically and durably.

        Raises:
            FileExistsError: `target` exists; it is not changed.
            OSError: also if only the last fsync failed; `target` is removed then.
        """
        path = self.path(target)
        folder = str(Path(target).parent)
        if not path.parent.is_dir():
            path.parent.mkdir(exist_ok=True)
            self.sync(folder)
        path.hardlink_to(self.path(source))
        try:
            self.sync_entries(folder)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def open(self, name: str) -> BinaryIO:
        return self.path(name).open("rb")

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def exists(self, name: str) -> bool:
        try:
            return self.path(name).exists()
        except OSError:  # no access: reading it raises the error
            return False

    def names(self, folder: str) -> list[str]:
        """Sorted names in a folder; empty if it does not exist."""
        path = self.path(folder)
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []

    def remove(self, name: str) -> None:
        """Remove a file if it exists, then folders that it leaves empty."""
        path = self.path(name)
        path.unlink(missing_ok=True)
        self._remove_empty(path.parent)

    def remove_folder(self, name: str) -> None:
        """Remove a folder if it exists, then folders that it leaves empty."""
        path = self.path(name)
        if path.is_dir():
            shutil.rmtree(path)
        self._remove_empty(path.parent)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.root and folder.is_dir() and not any(folder.iterdir()):
            try:
                folder.rmdir()
            except OSError:  # another rank created a file, or removed the folder first
                return
            folder = folder.parent

    def sync(self, folder: str) -> None:
        """Make the entries of a folder and of all folders on its path durable."""
        self.sync_entries(folder)
        path = self.path(folder)
        while path != self.root:
            path = path.parent
            _sync_folder(path)
        if not self._root_is_durable:
            with contextlib.suppress(PermissionError):  # another user's folder: then that user made the root
                _sync_folder(self.root.parent)
            self._root_is_durable = True

    def sync_entries(self, folder: str) -> None:
        """Make the entries of a folder durable; the caller does the same for the folder itself."""
        _sync_folder(self.path(folder))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_storage(uri: str | Path) -> LocalStorage:
    """The storage behind a checkpoint URI: a path or file:///path.

    Raises:
        InputError: another scheme, or the path is a file.
    """
    text = str(uri)
    if _SCHEME.match(text):
        parts = urlsplit(text)
        if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
            raise InputError(
                f"checkpoint uri {text!r}: scheme {parts.scheme!r} is not supported;"
                " use a path or file:///path (a mounted file system with hard links)"
            )
        text = unquote(parts.path)
    root = Path(text).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise InputError(f"checkpoint uri {str(uri)!r}: {root} is a file, not a folder")
    return LocalStorage(root)
