"""A virtual clock: actions run in the order of their times."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass

Action = Callable[[], None]


@dataclass(slots=True)
class Timer:
    """Something scheduled; `cancel` makes it a no-op."""

    action: Action | None

    def cancel(self) -> None:
        self.action = None


class EventQueue:
    """Scheduled actions in order of time; those at the same time run in the order they were scheduled."""

    def __init__(self, start: float = 0.0) -> None:
        self.now = start
        self._queue: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def at(self, when: float, action: Action) -> Timer:
        """Run `action` at `when`, or at once if that has passed."""
        timer = Timer(action)
        heapq.heappush(self._queue, (max(when, self.now), next(self._order), timer))
        return timer

    def after(self, delay_s: float, action: Action) -> Timer:
        return self.at(self.now + delay_s, action)

    def run_next(self, until: float) -> bool:
        """Run the next action; False (and the clock at `until`) when none is due before."""
        while self._queue and self._queue[0][0] <= until:
            when, _, timer = heapq.heappop(self._queue)
            if timer.action is None:
                continue
            self.now = when
            timer.action()
            return True
        self.now = max(self.now, until)
        return False
