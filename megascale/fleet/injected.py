"""A local fleet for jobs whose manifest has `faults`: marks node losses that a fault caused."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from megascale.fleet.base import SlotEvent
from megascale.fleet.local import LocalFleet
from megascale.observe.fault_markers import read_markers
from megascale.observe.rundir import RunDir

log = logging.getLogger(__name__)

_RECENT_S: Final = 10.0


class InjectedFleet(LocalFleet):
    """Marks a node's loss as injected if a fault fired on the node within the 10 seconds before it.

    The event then carries the fault's time.
    """

    def __init__(self, run: RunDir, limit: Callable[[], int]) -> None:
        super().__init__(run, limit)
        self._explaining: set[asyncio.Task[SlotEvent]] = set()

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None:
        await super().start(lambda event: self._explain(event, on_event))

    def _explain(self, event: SlotEvent, on_event: Callable[[SlotEvent], None]) -> None:
        """Read the fault markers in a thread, then pass the event on."""
        task = asyncio.create_task(asyncio.to_thread(self._explained, event))
        self._explaining.add(task)
        task.add_done_callback(functools.partial(self._pass_on, event, on_event))

    def _pass_on(
        self, event: SlotEvent, on_event: Callable[[SlotEvent], None], done: asyncio.Task[SlotEvent]
    ) -> None:
        """Pass on the explained event, or `event` as it is if the markers could not be read."""
        self._explaining.discard(done)
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            log.warning("whether a fault ended %s is not known: %r", event.node, error)
        on_event(event if error is not None else done.result())

    def _explained(self, event: SlotEvent) -> SlotEvent:
        for marker in read_markers(self._run.faults):
            if marker.node == event.node and 0.0 <= event.at - marker.time < _RECENT_S:
                return replace(event, at=marker.time, injected=True)
        return event
