"""Blocking calls, kept off the event loop: a file system that hangs holds up nobody but who waits for it."""

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
    """Runs calls one after the other in a thread of their own.

    A call that hangs is not started twice: later ones wait for its end. The threads are daemons, so that
    none of them keeps the process from ending.

    Args:
        name: what is called, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: asyncio.Future[Any] | None = None

    async def call(self, work: Callable[[], T], timeout_s: float | None = None) -> T:
        """The result of `work`, or what it raises.

        Raises:
            UnreachableError: it was not done after `timeout_s`, counted with the wait for calls before it.
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
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle)

        threading.Thread(target=main, name=self._name, daemon=True).start()
        return future

    def _note(self, future: asyncio.Future[Any]) -> None:
        """An error that comes after its caller has given up is not lost."""
        if not future.cancelled() and (error := future.exception()) is not None:
            log.debug("%s: %r", self._name, error)
