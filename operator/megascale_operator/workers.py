"""Workers take keys from a queue and reconcile them; what fails is tried again later, and only that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from megascale.errors import MegascaleError
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.errors import ConflictError, NotLeaderError
from megascale_operator.kube.queue import KeyedQueue
from megascale_operator.metrics import Metrics

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)
STUCK_S: Final = 300.0
"""No reconcile takes so long: every request in it is bounded."""


class Workers(Generic[Key]):
    """Runs `reconcile(key)` for keys of a queue; it returns in how many seconds to look again, or None."""

    def __init__(
        self,
        name: str,
        queue: KeyedQueue[Key],
        reconcile: Callable[[Key], Awaitable[float | None]],
        clock: Clock,
        metrics: Metrics,
        *,
        count: int = 1,
    ) -> None:
        self.name = name
        self._queue, self._reconcile, self._clock, self._count = queue, reconcile, clock, count
        self._metrics = metrics
        self._busy: dict[Key, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._count):
                group.create_task(self._work())

    def stuck(self) -> list[str]:
        """Keys that are in work for impossibly long."""
        now = self._clock.monotonic()
        return [f"{self.name} {key}" for key, since in self._busy.items() if now - since > STUCK_S]

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._metrics.queue_depth.labels(self.name).set(len(self._queue))
            try:
                await self._one(key)
            finally:
                self._busy.pop(key, None)
                self._queue.done(key)

    async def _one(self, key: Key) -> None:
        started = self._busy[key] = self._clock.monotonic()
        # In a task of its own: a mistake in the handling of one object must not end the care for all others.
        task = asyncio.ensure_future(self._reconcile(key))
        try:
            await asyncio.wait({task})
        finally:
            task.add_done_callback(_retrieve)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        self._metrics.reconcile_seconds.labels(self.name).observe(self._clock.monotonic() - started)
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._queue.succeeded(key)
            again_s = None if task.cancelled() else task.result()
            if again_s is not None:
                self._queue.add_after(key, again_s)
            return
        if isinstance(error, NotLeaderError):
            return
        self._metrics.reconcile_errors.labels(self.name).inc()
        delay_s = self._queue.failed(key)
        if isinstance(error, ConflictError):
            log.info("%s %s: somebody wrote first, again in %.1f s: %s", self.name, key, delay_s, error)
        elif isinstance(error, MegascaleError):
            log.warning("%s %s: %s; again in %.1f s", self.name, key, error, delay_s)
        else:
            log.error("%s %s: again in %.1f s", self.name, key, delay_s, exc_info=error)


def _retrieve(task: asyncio.Future[float | None]) -> None:
    """Of a task that is given up, its error is not worth a line in the log."""
    if not task.cancelled():
        task.exception()
