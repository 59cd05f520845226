"""Workers take keys from a queue and reconcile them; a key whose reconcile fails is retried with back-off."""

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
"""A reconcile that runs longer is reported as stuck; each of its requests has a timeout."""


class Workers(Generic[Key]):
    """Calls `reconcile(key)` for the keys of a queue.

    Args:
        name: of the controller, in logs and metrics.
        reconcile: returns the seconds after which to reconcile the key again, or None.
        count: number of concurrent workers.
    """

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
        self._processing: dict[Key, float] = {}

    async def run(self) -> None:
        """Process keys until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._count):
                group.create_task(self._work())

    def stuck(self) -> list[str]:
        """Return the keys that have been processed for more than STUCK_S seconds."""
        now = self._clock.monotonic()
        return [f"{self.name} {key}" for key, since in self._processing.items() if now - since > STUCK_S]

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._metrics.queue_depth.labels(self.name).set(len(self._queue))
            try:
                await self._process(key)
            finally:
                self._processing.pop(key, None)
                self._queue.done(key)

    async def _process(self, key: Key) -> None:
        started = self._processing[key] = self._clock.monotonic()
        # In a task of its own, so that an unexpected exception for one key does not end the worker.
        task = asyncio.ensure_future(self._reconcile(key))
        try:
            await asyncio.wait({task})
        finally:
            task.add_done_callback(_consume_exception)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        self._metrics.reconcile_seconds.labels(self.name).observe(self._clock.monotonic() - started)
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._queue.succeeded(key)
            requeue_s = None if task.cancelled() else task.result()
            if requeue_s is not None:
                self._queue.add_after(key, requeue_s)
            return
        if isinstance(error, NotLeaderError):
            # A late renewal may open the fence again without a new election.
            self._queue.failed(key)
            return
        self._metrics.reconcile_errors.labels(self.name).inc()
        delay_s, what, fields = self._queue.failed(key), (self.name, key), _log_fields(self.name, key)
        if isinstance(error, ConflictError):
            log.info("%s %s: write conflict, retry in %.1f s: %s", *what, delay_s, error, extra=fields)
        elif isinstance(error, MegascaleError):
            log.warning("%s %s: %s; retry in %.1f s", *what, error, delay_s, extra=fields)
        else:
            log.error("%s %s: retry in %.1f s", *what, delay_s, exc_info=error, extra=fields)


def _log_fields(queue: str, key: Hashable) -> dict[str, str]:
    """The fields of a log line about a key: `job` as namespace/name, or `node`; none for other queues."""
    if queue == "jobs" and isinstance(key, tuple):
        return {"job": "/".join(key)}
    return {"node": str(key)} if queue == "nodes" else {}


def _consume_exception(task: asyncio.Future[float | None]) -> None:
    """Read the task's exception so that asyncio does not log it as never retrieved."""
    if not task.cancelled():
        task.exception()
