"""A queue of keys to reconcile: each key at most once in line and at most once in work."""

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
    """First come, first served; a key added while it is in work comes again after `done`.

    Bounded by the number of keys: adding one twice changes nothing.
    """

    def __init__(self, monotonic: Callable[[], float], seed: int | None = None) -> None:
        self._monotonic = monotonic
        self._random = random.Random(seed)
        self._ready: dict[Key, None] = {}
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._due: dict[Key, float] = {}
        self._timers: list[tuple[float, int, Key]] = []
        self._order = 0
        self._failures: dict[Key, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Keys that could be worked on now."""
        return len(self._ready)

    def add(self, key: Key) -> None:
        """As soon as possible."""
        self._due.pop(key, None)
        if key in self._busy:
            self._again.add(key)
        else:
            self._ready[key] = None
        self._wake.set()

    def add_after(self, key: Key, delay_s: float) -> None:
        """In `delay_s` at the latest; an earlier turn of the same key stands."""
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
        """Again after a delay that doubles with each failure in a row, 1 s to 5 min; returns it."""
        count = self._failures[key] = self._failures.get(key, 0) + 1
        delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(count - 1, 16)) * self._random.uniform(
            0.75, 1.0
        )
        self.add_after(key, delay_s)
        return delay_s

    def succeeded(self, key: Key) -> None:
        """The next failure counts as the first."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """The key's object is gone: no turn that was set for later."""
        self._failures.pop(key, None)
        self._due.pop(key, None)

    def done(self, key: Key) -> None:
        """The key that `get` returned is not in work any more."""
        self._busy.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def get(self) -> Key:
        """The next key, when there is one; it is in work until `done`."""
        while True:
            wait_s = self._promote()
            if self._ready:
                key = next(iter(self._ready))
                del self._ready[key]
                self._busy.add(key)
                return key
            self._wake.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _promote(self) -> float | None:
        """Put due keys in line; seconds to the next one."""
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
