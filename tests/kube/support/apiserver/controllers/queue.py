"""A set of keys to be processed; adding a key twice has no effect."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Work = TypeVar("Work")


class Dirty(Generic[Work]):
    """The keys marked since the last `take`."""

    def __init__(self) -> None:
        self._keys: dict[Work, None] = {}
        self._some = asyncio.Event()

    def mark(self, key: Work) -> None:
        self._keys[key] = None
        self._some.set()

    async def take(self, timeout_s: float | None = None) -> list[Work]:
        """Return and clear the marked keys; wait up to `timeout_s` seconds for the first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._some.wait()
        except TimeoutError:
            pass
        keys, self._keys = list(self._keys), {}
        self._some.clear()
        return keys
