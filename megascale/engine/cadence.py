"""Chooses how often to take a snapshot: as often as possible while copies take at most 1% of the time."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Final

STALL_SHARE: Final = 0.01
_WARM: Final = 2
_MEASURED: Final = 5
_SETTLE_EVERY: Final = 64
_KEPT: Final = 32


class SnapshotCadence:
    """Snapshot cadence of one launch, the same on all ranks; each of them calls `is_due` after every step."""

    def __init__(self) -> None:
        self.every_steps = 1
        self._last = 0
        self._taken = 0
        self._steps_s: deque[float] = deque(maxlen=_KEPT)
        self._copies_s: deque[float] = deque(maxlen=_KEPT)

    def is_due(self, step: int, step_s: float) -> bool:
        """Whether a snapshot follows `step`, which took `step_s` seconds."""
        self._steps_s.append(step_s)
        return self._taken == 0 or step - self._last >= self.every_steps

    def took(self, step: int, copy_s: float) -> bool:
        """Record that a snapshot of `step` took `copy_s`; whether all ranks call `settle` now."""
        self._last = step
        self._taken += 1
        if self._taken > _WARM:  # the first use of a buffer also maps its pages
            self._copies_s.append(copy_s)
        measured = self._taken - _WARM
        return measured == _MEASURED or (measured > 0 and measured % _SETTLE_EVERY == 0)

    @property
    def share(self) -> float:
        """Median duration of a snapshot on this rank, as a share of the median step."""
        return statistics.median(self._copies_s) / statistics.median(self._steps_s)

    def settle(self, share: float) -> bool:
        """Set the cadence for the largest `share` of all ranks; whether it changed or was measured first."""
        before, self.every_steps = self.every_steps, max(1, math.ceil(share / STALL_SHARE))
        return self.every_steps != before or self._taken == _WARM + _MEASURED
