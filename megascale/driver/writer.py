"""Writes what the driver decided, and says what happens while the disk or the record's store fails."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from megascale.core.eventlog import Entry, Gap, Header
from megascale.driver.ports import EventSink
from megascale.errors import UnreachableError

_RETRY_S: Final = 0.5
_RETRY_LIMIT_S: Final = 4.0
_ALERT_S: Final = 60.0


class DecisionWriter:
    """Writes the event log and the job record.

    A decision is an entry with effects: it waits until log and record are written. Any other entry is tried
    once and left out if that fails; how many are missing is written into the log before the next entry.

    Args:
        write_record: writes the newest job record.
        alert: takes a text for people: when an outage begins, once a minute while it lasts, and at its end.

    Attributes:
        has_gap: entries are missing since `begin_part`, so what follows cannot be verified.
    """

    def __init__(
        self,
        log: EventSink,
        write_record: Callable[[], Awaitable[None]],
        alert: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._log, self._write_record, self._alert = log, write_record, alert
        self._clock, self._wall = clock, wall
        self.has_gap = False
        self._missing = 0
        self._record_is_due = False
        self._alerted: dict[str, float] = {}
        self._gave_way = asyncio.Event()

    def give_way(self) -> None:
        """From now on nothing waits for a write that fails: a person asked to stop the job."""
        self._gave_way.set()

    async def write(self, entry: Entry, *, must_store: bool) -> tuple[bool, float]:
        """Write an entry and, if it `must_store` or an earlier one could not, the record.

        Returns:
            Whether the record is up to date, which is False for a decision only after `give_way`; and the
            seconds that it took.
        """
        began, holds = self._clock(), bool(entry.effects)
        if not await self.until_written(lambda: self._append(entry), holds=holds):
            self._missing += 1
        self._record_is_due = self._record_is_due or must_store
        if self._record_is_due and await self.until_written(self._write_record, holds=holds):
            self._record_is_due = False
        if self._alerted and not self._missing and not self._record_is_due:
            self._alerted.clear()
            self._alert("the driver can write its record and log again")
        return not self._record_is_due, self._clock() - began

    async def begin_part(self, header: Header, term: int) -> bool:
        """Write a header, tried once; returns whether it is written."""

        async def begin() -> None:
            await self._tell_missing()
            await self._log.begin(header, term)

        if not await self.until_written(begin, holds=False):
            return False
        self.has_gap = False
        return True

    async def _tell_missing(self) -> None:
        if self._missing:
            await self._log.append(Gap(self._wall(), self._missing))
            self.has_gap, self._missing = True, 0

    async def _append(self, entry: Entry) -> None:
        await self._tell_missing()
        await self._log.append(entry)

    async def until_written(self, write: Callable[[], Awaitable[None]], *, holds: bool = True) -> bool:
        """Write and, if it `holds` what follows, try again until that succeeds; returns whether it did.

        While the disk is full or the record's store is unreachable, decisions wait and training continues.
        """
        tries = 0
        while True:
            try:
                await write()
            except (OSError, UnreachableError) as error:
                self._complain(error, holds=holds)
                if not holds or self._gave_way.is_set():
                    return False
                tries += 1
                await self._pause(min(_RETRY_LIMIT_S, _RETRY_S * 2 ** min(tries, 8)))
            else:
                return True

    async def _pause(self, longest_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s * random.uniform(0.5, 1.0)):
                await self._gave_way.wait()

    def _complain(self, error: Exception, *, holds: bool) -> None:
        now, what = self._clock(), f"the driver cannot write its record or log ({error})"
        kind = "held" if holds else "missing"
        if now - self._alerted.get(kind, -_ALERT_S) < _ALERT_S:
            return
        self._alerted[kind] = now
        if holds and self._gave_way.is_set():
            self._alert(f"{what}; the job is stopped without it")
        elif holds:
            self._alert(f"{what}; decisions wait for it and training goes on; make room, or stop the job")
        else:
            self._alert(
                f"{what}; training goes on, and events are left out of the log ({self._missing + 1} so far)"
            )
