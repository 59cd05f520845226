"""How often to take a snapshot: after every step if that stalls training for at most 1%, else less often."""

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
    """Counts steps and snapshots of one launch; the same on every rank, which all ask in every step."""

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
        """A snapshot of `step` blocked this rank for `copy_s`; whether all ranks are to `settle` now."""
        self._last = step
        self._taken += 1
        if self._taken > _WARM:  # the first use of a buffer also maps its pages
            self._copies_s.append(copy_s)
        measured = self._taken - _WARM
        return measured == _MEASURED or (measured > 0 and measured % _SETTLE_EVERY == 0)

    @property
    def share(self) -> float:
        """Time of a snapshot as a share of a step, in the median of what was measured here."""
        return statistics.median(self._copies_s) / statistics.median(self._steps_s)

    def settle(self, share: float) -> bool:
        """Choose the cadence for the largest `share` of all ranks; whether that changed it."""
        before, self.every_steps = self.every_steps, max(1, math.ceil(share / STALL_SHARE))
        return self.every_steps != before or self._taken == _WARM + _MEASURED
