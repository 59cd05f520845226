"""Events on their way to the core: bounded, and of each node only the newest report."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from megascale.core.contract import events as ev

_LIMIT: Final = 65536
_ADVICE_LIMIT: Final = 49152
_ADVICE: Final = (ev.LogMatch, ev.HardwareEvent, ev.SegmentTimes)


class Inbox:
    """Reports replace older ones that were not read yet: they tell where a node is, not what happened.

    While decisions wait for the record, a job of any size adds no more than a report per node.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._events: deque[ev.Event | str] = deque()
        self._reports: dict[str, ev.NodeReport] = {}
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def post(self, event: ev.Event) -> None:
        """Queue an event.

        Raises:
            asyncio.QueueFull: nothing has been read for very long, and this event must not be lost.
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
                self._events.append(event.node)
        else:
            self._events.append(event)
        self._filled.set()

    async def next(self, timeout_s: float | None) -> ev.Event:
        """The oldest event, a Tick when none came in `timeout_s`."""
        if not self._events:
            self._filled.clear()
            try:
                # not wait_for: before Python 3.12 it can swallow a cancellation
                async with asyncio.timeout(timeout_s):
                    await self._filled.wait()
            except TimeoutError:
                return ev.Tick()
        event = self._events.popleft()
        return self._reports.pop(event) if isinstance(event, str) else event
