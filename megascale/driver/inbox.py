"""The bounded queue of events for the core; it keeps only the newest report of each node."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from megascale.core.contract import events as ev

_LIMIT: Final = 65536
_ADVICE_LIMIT: Final = 49152
_ADVICE: Final = (ev.LogMatch, ev.HardwareEvent, ev.SegmentTimes)


class Inbox:
    """A queue in which a node's report replaces its unread older report.

    A report is the node's current state, so older ones are redundant. While decisions wait for the record,
    reports take up at most one entry per node.

    Attributes:
        dropped: log matches, hardware events and segment times discarded because the queue was too full.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.dropped = 0
        self._clock, self._taken = clock, clock()
        self._events: deque[tuple[float, ev.Event | str]] = deque()
        self._reports: dict[str, ev.NodeReport] = {}
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    @property
    def waited_s(self) -> float:
        """Seconds since the event that `next` returned last was posted; a report, since the first that it
        replaced."""
        return self._clock() - self._taken

    def post(self, event: ev.Event) -> None:
        """Queue an event.

        Raises:
            asyncio.QueueFull: the queue is full and the event is of a kind that must not be dropped.
        """
        if isinstance(event, _ADVICE) and len(self._events) >= _ADVICE_LIMIT:
            self.dropped += 1
            return
        if len(self._events) >= _LIMIT:
            raise asyncio.QueueFull
        if isinstance(event, ev.NodeReport):
            is_first = event.node not in self._reports
            self._reports[event.node] = event
            if is_first:
                self._events.append((self._clock(), event.node))
        else:
            self._events.append((self._clock(), event))
        self._filled.set()

    async def next(self, timeout_s: float | None) -> ev.Event:
        """Return the oldest event, or a Tick if none arrives within `timeout_s` seconds (None = no limit)."""
        if not self._events:
            self._filled.clear()
            try:
                # Not wait_for, which can swallow a cancellation before Python 3.12.
                async with asyncio.timeout(timeout_s):
                    await self._filled.wait()
            except TimeoutError:
                if not self._events:  # one may have come at the same moment
                    self._taken = self._clock()
                    return ev.Tick()
        self._taken, event = self._events.popleft()
        return self._reports.pop(event) if isinstance(event, str) else event
