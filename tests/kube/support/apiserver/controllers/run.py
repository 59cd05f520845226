"""Starts and stops the controllers."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Protocol

from apiserver.controllers.garbage import GarbageCollector
from apiserver.controllers.namespaces import Namespaces
from apiserver.controllers.nodes import Nodes
from apiserver.controllers.podgc import PodCollector
from apiserver.controllers.scheduler import Scheduler
from apiserver.server import ApiServer


class _Runs(Protocol):
    async def run(self) -> None: ...


class Controllers:
    """An async context manager: the controllers run while it is entered. Times in seconds."""

    def __init__(self, server: ApiServer, ca_pem: str, node_grace_s: float, orphan_grace_s: float) -> None:
        store, writer, registry = server.store, server.writer, server.registry
        self._parts: list[_Runs] = [
            Namespaces(store, writer, registry, ca_pem),
            GarbageCollector(store, writer, registry),
            Scheduler(store),
            Nodes(store, writer, registry, node_grace_s),
            PodCollector(store, orphan_grace_s),
        ]
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Controllers:
        self._tasks = [asyncio.create_task(part.run(), name=type(part).__name__) for part in self._parts]
        for task in self._tasks:
            task.add_done_callback(_report)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _report(task: asyncio.Task[Any]) -> None:
    """Exit the process if a controller fails, so that tests do not run against an incomplete cluster."""
    if not task.cancelled() and task.exception():
        task.get_loop().call_exception_handler(
            {"message": f"controller {task.get_name()} failed", "exception": task.exception()}
        )
        task.get_loop().stop()
