"""The event log file: appended before effects are performed."""

from __future__ import annotations

import os

from megascale.core.eventlog import Entry, Header, entry_line, header_line
from megascale.driver.offload import StorageThread
from megascale.observe.rundir import RunDir


class EventLog:
    """Implements `EventSink` with a file. Appends whole lines; `fsync` only where effects follow.

    A disk that hangs holds up decisions, which wait for `append`, and nothing else.
    """

    def __init__(self, run: RunDir) -> None:
        self._descriptor = os.open(run.events_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._end_torn_line(run)
        self._disk = StorageThread(str(run.events_file))

    def _end_torn_line(self, run: RunDir) -> None:
        """A driver that was killed while writing leaves half a line: keep it from swallowing the next."""
        size = os.fstat(self._descriptor).st_size
        if not size:
            return
        with run.events_file.open("rb") as handle:
            handle.seek(size - 1)
            if handle.read(1) != b"\n":
                os.write(self._descriptor, b"\n")

    def begin(self, header: Header, term: int) -> None:  # noqa: ARG002 - all terms share the file
        self._append(header_line(header))
        os.fsync(self._descriptor)

    async def append(self, entry: Entry) -> None:
        """Raises OSError when the disk is full."""
        line = entry_line(entry)

        def write() -> None:
            self._append(line)
            if entry.effects:
                os.fdatasync(self._descriptor)

        await self._disk.call(write)

    def _append(self, line: str) -> None:
        raw = line.encode() + b"\n"
        written = os.write(self._descriptor, raw)
        if written != len(raw):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(28, "the event log could not be written whole")

    async def close(self) -> None:
        os.close(self._descriptor)
