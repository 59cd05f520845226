"""A work queue: each key is queued at most once and processed by at most one worker at a time."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_DELAY_S: Final = 1.0
MAX_DELAY_S: Final = 300.0


class KeyedQueue(Generic[Key]):
    """A FIFO queue of keys. A key that is added while it is being processed is queued again after `done`.

    Adding a queued key has no effect, so the length is bounded by the number of distinct keys.

    Args:
        monotonic: clock for delays, in seconds.
        seed: of the jitter of retry delays.
    """

    def __init__(self, monotonic: Callable[[], float], seed: int | None = None) -> None:
        self._monotonic = monotonic
        self._random = random.Random(seed)
        self._ready: dict[Key, None] = {}
        self._processing: set[Key] = set()
        self._dirty: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._timers: list[tuple[float, int, Key]] = []
        self._order = 0
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """The number of keys that are ready to be processed."""
        return len(self._ready)

    def add(self, key: Key) -> None:
        """Queue the key now; cancels its delay, if it has one."""
        self._due.pop(key, None)
        if key in self._processing:
            self._dirty.add(key)
        else:
            self._ready[key] = None
        self._wake.set()

    def add_after(self, key: Key, delay_s: float) -> None:
        """Queue the key after `delay_s` seconds, unless it is already due earlier."""
        if delay_s <= 0:
            self.add(key)
            return
        if key in self._ready:
            return
        due = self._monotonic() + delay_s
        if due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._timers, (due, self._order, key))
        self._wake.set()

    def failed(self, key: Key) -> float:
        """Queue the key for a retry; return the delay in seconds.

        The delay starts at 1 s and doubles with each consecutive failure, up to 5 minutes.
        """
        count = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(count - 1, 16)) * self._random.uniform(
            0.75, 1.0
        )
        self.add_after(key, delay_s)
        return delay_s

    def succeeded(self, key: Key) -> None:
        """Reset the key's retry delay."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """Drop the key's delay and retry count, because its object was deleted."""
        self._failures.pop(key, None)
        self._due.pop(key, None)

    def done(self, key: Key) -> None:
        """Mark the key that `get` returned as processed."""
        self._processing.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    async def get(self) -> Key:
        """Wait for the next key and return it; call `done` when it is processed."""
        while True:
            wait_s = self._promote()
            if self._ready:
                key = next(iter(self._ready))
                del self._ready[key]
                self._processing.add(key)
                return key
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _promote(self) -> float | None:
        """Queue the keys that are due; return the seconds until the next one, None if there is none."""
        now = self._monotonic()
        while self._timers:
            due, _, key = self._timers[0]
            if self._due.get(key) != due:
                heapq.heappop(self._timers)
            elif due <= now:
                heapq.heappop(self._timers)
                self.add(key)
            else:
                return due - now
        return None
