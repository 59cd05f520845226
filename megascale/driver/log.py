"""The event log of a local run; entries are appended before their effects are executed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from megascale.core.eventlog import Entry, Gap, Header, entry_line, header_line
from megascale.observe.rundir import RunDir, log_part, log_parts
from megascale.offload import StorageThread

PART_BYTES: Final = 64 << 20
"""The log goes on in a new file after this many bytes, once the job runs undisturbed."""
PARTS: Final = 8
"""Of the log the first file and the newest ones are kept, so many in all."""


class EventLog:
    """Implements `EventSink` with files. Appends whole lines; syncs to disk only entries with effects.

    Writes run in a thread. A hanging disk delays decisions, which wait for `append`, but not the event loop.
    """

    def __init__(self, run: RunDir, *, part_bytes: int = PART_BYTES, parts: int = PARTS) -> None:
        self._first, self._part_bytes, self._parts = run.events_file, part_bytes, parts
        self._part = max(log_parts(self._first), default=0)
        self._size = 0
        self._descriptor = self._open(log_part(self._first, self._part))
        self._disk = StorageThread(str(self._first))

    @property
    def is_full(self) -> bool:
        return self._size >= self._part_bytes

    def _open(self, path: Path) -> int:
        """Open a file; one that a driver killed while writing left with a partial line gets a newline."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(descriptor).st_size
        if self._size and os.pread(descriptor, 1, self._size - 1) != b"\n":
            os.write(descriptor, b"\n")
        return descriptor

    async def begin(self, header: Header, term: int) -> None:  # noqa: ARG002 - all terms share the files
        def write() -> None:
            if self.is_full:
                self._begin_part(header_line(header))
            else:
                self._append(header_line(header), sync=True)

        await self._disk.call(write)

    def _begin_part(self, line: str) -> None:
        """Go on in a new file, unless its first line cannot be written."""
        path, before = log_part(self._first, self._part + 1), (self._descriptor, self._size)
        self._descriptor = self._open(path)
        try:
            self._append(line, sync=True)
        except OSError:
            os.close(self._descriptor)
            path.unlink()
            self._descriptor, self._size = before
            raise
        os.close(before[0])
        self._part += 1
        oldest = self._part - self._parts + 1
        if oldest >= 1:
            log_part(self._first, oldest).unlink(missing_ok=True)

    async def append(self, entry: Entry | Gap) -> None:
        """Append one entry; raises OSError if it cannot be written whole, e.g. because the disk is full."""
        line = entry_line(entry)

        def write() -> None:
            self._append(line, sync=isinstance(entry, Entry) and bool(entry.effects))

        await self._disk.call(write)

    def _append(self, line: str, *, sync: bool) -> None:
        """Append the line whole, or leave the file as it was, since the line may be written again."""
        raw, size = line.encode() + b"\n", os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, raw) != len(raw):
                raise OSError(errno.ENOSPC, "the event log could not be written whole")
            if sync:
                os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise
        self._size = size + len(raw)

    async def close(self) -> None:
        os.close(self._descriptor)
