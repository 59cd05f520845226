"""The event log file of a local run; entries are appended before their effects are executed."""

from __future__ import annotations

import errno
import os

from megascale.core.eventlog import Entry, Gap, Header, entry_line, header_line
from megascale.observe.rundir import RunDir
from megascale.offload import StorageThread


class EventLog:
    """Implements `EventSink` with a file. Appends whole lines; syncs to disk only entries with effects.

    Writes run in a thread. A hanging disk delays decisions, which wait for `append`, but not the event loop.
    """

    def __init__(self, run: RunDir) -> None:
        self._descriptor = os.open(run.events_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._end_torn_line(run)
        self._disk = StorageThread(str(run.events_file))

    def _end_torn_line(self, run: RunDir) -> None:
        """Append a newline if the file ends in a partial line, which a driver killed while writing leaves."""
        size = os.fstat(self._descriptor).st_size
        if not size:
            return
        with run.events_file.open("rb") as handle:
            handle.seek(size - 1)
            if handle.read(1) != b"\n":
                os.write(self._descriptor, b"\n")

    async def begin(self, header: Header, term: int) -> None:  # noqa: ARG002 - all terms share the file
        await self._disk.call(lambda: self._append(header_line(header), sync=True))

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

    async def close(self) -> None:
        os.close(self._descriptor)
