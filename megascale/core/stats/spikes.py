"""Loss and gradient-norm spikes, values that are no numbers, and a decaying MFU. Online, bounded memory.

ByteRobust section 2 calls a jump of 5x in loss or gradient norm anomalous; a loss seldom jumps that far, so a
robust band around the running median is used beside it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Literal

JUMP = 5.0


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A value out of line.

    Attributes:
        kind: not_a_number, spike or decay; reason: a sentence with the numbers.
    """

    kind: Literal["not_a_number", "spike", "decay"]
    metric: str
    step: int
    value: float
    reference: float
    reason: str


class SpikeDetector:
    """Watches one metric, higher = worse.

    Args:
        window: values the running median is taken over.
        warmup: values before anything but NaN is called an anomaly.
        sigmas: half width of the robust band; 0 switches the band off and leaves the 5x rule.
    """

    def __init__(self, metric: str, *, window: int = 64, warmup: int = 16, sigmas: float = 10.0) -> None:
        if not 4 <= warmup <= window:
            raise ValueError(f"expected 4 <= warmup <= window, got {warmup} and {window}")
        self._metric = metric
        self._values: deque[float] = deque(maxlen=window)
        self._warmup = warmup
        self._sigmas = sigmas

    def observe(self, step: int, value: float) -> Anomaly | None:
        """The anomaly this value is, or None. The reference is a median, which a few of them do not move."""
        if not math.isfinite(value):
            return Anomaly(
                "not_a_number",
                self._metric,
                step,
                value,
                math.nan,
                f"{self._metric} is {value} at step {step}",
            )
        anomaly = self._compare(step, value) if len(self._values) >= self._warmup else None
        self._values.append(value)
        return anomaly

    def _compare(self, step: int, value: float) -> Anomaly | None:
        reference = median(self._values)
        width = 1.4826 * median(abs(other - reference) for other in self._values)
        limit = JUMP * reference if reference > 0 else math.inf
        rule = f"{JUMP:g}x the running median"
        band = reference + self._sigmas * max(width, 0.01 * abs(reference))
        if self._sigmas > 0 and band < limit:
            limit, rule = band, f"{self._sigmas:g} sigma above the running median"
        if value <= limit:
            return None
        return Anomaly(
            "spike",
            self._metric,
            step,
            value,
            reference,
            f"{self._metric} {value:.4g} at step {step} is more than {rule} {reference:.4g} of the last "
            f"{len(self._values)} steps",
        )


class DecayDetector:
    """Watches a rate (MFU, tokens a second) against its own baseline: the best level it has held.

    Args:
        window: values per level; drop: fraction lost that counts; hold: levels in a row that must be low.
    """

    def __init__(self, metric: str, *, window: int = 50, drop: float = 0.03, hold: int = 3) -> None:
        self._metric = metric
        self._window = window
        self.drop = drop  # may be changed while running
        self._hold = hold
        self._values: list[float] = []
        self._recent: deque[float] = deque(maxlen=hold)
        self._baseline: float | None = None
        self._reported = False

    def observe(self, step: int, value: float) -> Anomaly | None:
        """An anomaly once per decay; again only after the rate came back."""
        if not math.isfinite(value):
            return None
        self._values.append(value)
        if len(self._values) < self._window:
            return None
        level = median(self._values)
        self._values.clear()
        self._recent.append(level)
        if len(self._recent) == self._hold:
            # a level counts as held when it was not undercut for `hold` windows
            held = min(self._recent)
            self._baseline = held if self._baseline is None else max(self._baseline, held)
        if self._baseline is None:
            return None
        low = all(recent < (1.0 - self.drop) * self._baseline for recent in self._recent)
        if not low or self._reported:
            self._reported = self._reported and low
            return None
        self._reported = True
        return Anomaly(
            "decay",
            self._metric,
            step,
            level,
            self._baseline,
            f"{self._metric} {level:.4g} at step {step} is {1 - level / self._baseline:.1%} below its "
            f"baseline {self._baseline:.4g} for {self._hold} windows of {self._window} steps",
        )
