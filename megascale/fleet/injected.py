"""Local nodes of a job whose manifest has `faults`: ends that were injected are told as such."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from megascale.fleet.base import SlotEvent
from megascale.fleet.local import LocalFleet
from megascale.observe.fault_markers import read_markers
from megascale.observe.rundir import RunDir

_RECENT_S: Final = 10.0


class InjectedFleet(LocalFleet):
    """A fault that fired on a node shortly before the node ended is the cause, and gives the time."""

    def __init__(self, run: RunDir, limit: int) -> None:
        super().__init__(run, limit)
        self._explaining: set[asyncio.Task[SlotEvent]] = set()

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None:
        await super().start(lambda event: self._explain(event, on_event))

    def _explain(self, event: SlotEvent, on_event: Callable[[SlotEvent], None]) -> None:
        """The event goes on once the markers have been read, off the event loop."""
        task = asyncio.create_task(asyncio.to_thread(self._explained, event))
        self._explaining.add(task)
        task.add_done_callback(self._explaining.discard)
        task.add_done_callback(lambda done: None if done.cancelled() else on_event(done.result()))

    def _explained(self, event: SlotEvent) -> SlotEvent:
        for marker in read_markers(self._run.faults):
            if marker.node == event.node and 0.0 <= event.at - marker.time < _RECENT_S:
                return replace(event, at=marker.time, injected=True)
        return event
