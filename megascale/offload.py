"""Runs blocking storage calls in threads, so that a hanging file system does not block the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from megascale.errors import UnreachableError

T = TypeVar("T")
log = logging.getLogger(__name__)


class StorageThread:
    """Runs blocking calls one at a time, each in a new daemon thread.

    While a call hangs, later calls wait for it to return. Daemon threads do not keep the process from
    exiting.

    Args:
        name: names the storage in error messages and logs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: asyncio.Future[Any] | None = None

    async def call(self, work: Callable[[], T], timeout_s: float | None = None) -> T:
        """Run `work` in a thread and return its result; errors of `work` are raised here.

        Raises:
            UnreachableError: it did not return within `timeout_s` seconds, including the wait for earlier
                calls. The thread goes on.
        """
        timeout = asyncio.timeout(timeout_s)
        try:
            async with timeout:
                while self._running is not None and not self._running.done():
                    await asyncio.wait((self._running,))
                self._running = future = self._start(work)
                return await asyncio.shield(future)
        except TimeoutError as error:
            if not timeout.expired():
                raise
            raise UnreachableError(f"{self._name} did not answer within {timeout_s:g} s") from error

    def _start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        future.add_done_callback(self._note)

        def main() -> None:
            try:
                settle = functools.partial(future.set_result, work())
            except BaseException as error:  # noqa: BLE001 - raised again where the call is waited for
                settle = functools.partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(settle)

        threading.Thread(target=main, name=self._name, daemon=True).start()
        return future

    def _note(self, future: asyncio.Future[Any]) -> None:
        """Log the call's error, which no caller retrieves if the caller timed out before."""
        if not future.cancelled() and (error := future.exception()) is not None:
            log.debug("%s: %r", self._name, error)
