"""The event log in the checkpoint store, written in batches and buffered while the store is unreachable."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

from megascale.checkpoint.storage import open_storage
from megascale.core.eventlog import Entry, Gap, Header, entry_line, header_line
from megascale.driver.running import RunningDriver
from megascale.offload import StorageThread

log = logging.getLogger(__name__)

_PERIOD_S: Final = 2.0
_HELD_BYTES: Final = 64 << 20
_CLOSE_S: Final = 10.0


class StoreLog:
    """Implements `EventSink` with `events/<term>.jsonl` under a checkpoint URI.

    `append` only buffers the line; `run`, a background service, writes the buffer, so decisions do not wait
    for the store. At most 64 MiB are buffered. Further lines are discarded, with a warning in the log.

    Attributes:
        dropped: number of discarded lines.
        is_full: never; a term has one file.
    """

    is_full = False

    def __init__(self, uri: str) -> None:
        self._storage = open_storage(uri)
        self._name = ""
        self._lines: deque[bytes] = deque()
        self._held = 0
        self.dropped = 0
        self._store = StorageThread(f"the store of {uri}")
        self._complained = False

    async def begin(self, header: Header, term: int) -> None:
        self._name = f"events/{term}.jsonl"
        self._add(header_line(header))

    async def append(self, entry: Entry | Gap) -> None:
        self._add(entry_line(entry))

    def _add(self, line: str) -> None:
        raw = line.encode() + b"\n"
        if self._held + len(raw) > _HELD_BYTES:
            if not self.dropped:
                log.warning("%s has a gap: the store takes no events for too long", self._name)
            self.dropped += 1
            return
        self._lines.append(raw)
        self._held += len(raw)

    async def run(self, _driver: RunningDriver) -> None:
        """Write the buffered lines every two seconds, until cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self._flush()

    async def _flush(self) -> None:
        """Write all buffered lines; if that fails they stay buffered, in order."""
        batch, self._lines = self._lines, deque()
        if not batch:
            return
        raw = b"".join(batch)
        try:
            await self._store.call(lambda: self._storage.append(self._name, raw))
        except OSError as error:
            self._lines = batch + self._lines
            if not self._complained:
                log.warning("%s cannot be written, events are held: %s", self._name, error)
            self._complained = True
        else:
            self._held -= len(raw)
            self._complained = False

    async def close(self) -> None:
        """Write the remaining lines; gives up after 10 seconds."""
        try:
            await asyncio.wait_for(self._flush(), _CLOSE_S)
        except TimeoutError:
            log.warning("the last events were not written to %s", self._name)
