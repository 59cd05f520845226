"""Notices when the driver's process did not run: stopped, its machine asleep, or the clock set forward."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

PERIOD_S: Final = 0.5
LEAST_S: Final = 1.0
"""Shorter pauses are taken for a busy machine and are not told."""


class PauseWatch:
    """Compares the times at which it is looked at; `run` looks every half second.

    Args:
        clock: Unix seconds. Wall time, since a monotonic clock stands still while a machine sleeps.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._looked_at, self._missed_s = clock, clock(), 0.0

    def look(self) -> None:
        """Add the time since the last look, less the half second between two, to what `take` returns."""
        now = self._clock()
        gap_s = now - self._looked_at - PERIOD_S
        if gap_s >= LEAST_S:
            self._missed_s += gap_s
        self._looked_at = now

    def take(self) -> float:
        """Return the seconds that were missed since the last call, 0.0 if none were."""
        self.look()
        missed_s, self._missed_s = self._missed_s, 0.0
        return missed_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(PERIOD_S)
