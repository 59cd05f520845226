"""A local fleet for jobs whose manifest has `faults`: marks node losses that a fault caused."""

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
    """Marks a node's loss as injected if a fault fired on the node within the 10 seconds before it.

    The event then carries the fault's time.
    """

    def __init__(self, run: RunDir, limit: int) -> None:
        super().__init__(run, limit)
        self._explaining: set[asyncio.Task[SlotEvent]] = set()

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None:
        await super().start(lambda event: self._explain(event, on_event))

    def _explain(self, event: SlotEvent, on_event: Callable[[SlotEvent], None]) -> None:
        """Read the fault markers in a thread, then pass the event on."""
        task = asyncio.create_task(asyncio.to_thread(self._explained, event))
        self._explaining.add(task)
        task.add_done_callback(self._explaining.discard)
        task.add_done_callback(lambda done: None if done.cancelled() else on_event(done.result()))

    def _explained(self, event: SlotEvent) -> SlotEvent:
        for marker in read_markers(self._run.faults):
            if marker.node == event.node and 0.0 <= event.at - marker.time < _RECENT_S:
                return replace(event, at=marker.time, injected=True)
        return event
