"""The goodput ledger: every second of a job belongs to exactly one phase.

The phases always sum to wall time. A fault moves the productive seconds after the commit that is restored
to lost work, and the seconds between fault and detection to detection, so the sum stays the same.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from megascale.core.contract.vocabulary import Cause

_MARKS_KEPT: Final = 64
_ACCOUNTS_KEPT: Final = 48
_OTHERS: Final = "others"


class GoodputPhase(enum.StrEnum):
    """What a second of a job was spent on."""

    PRODUCTIVE = "productive"
    STARTUP = "startup"
    CHECKPOINT_STALL = "checkpointStall"
    LOST_WORK = "lostWork"
    DETECTION = "detection"
    DIAGNOSIS = "diagnosis"
    RECOVERY = "recovery"
    WAITING_FOR_NODES = "waitingForNodes"
    SUSPENDED = "suspended"


@dataclass(slots=True)
class Ledger:
    """Seconds by phase, by (cause, phase) and by (node, phase).

    Attributes:
        since: the running phase is booked up to here; 0.0 before the job starts.
        began: when the running phase began.
        by_cause, by_node: unproductive seconds; the smallest accounts are merged beyond a bound.
        marks: step -> productive seconds when it was completed, to price lost work.
    """

    phase: GoodputPhase = GoodputPhase.STARTUP
    since: float = 0.0
    began: float = 0.0
    started_at: float = 0.0
    cause: Cause | None = None
    node: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    by_cause: dict[str, dict[str, float]] = field(default_factory=dict)
    by_node: dict[str, dict[str, float]] = field(default_factory=dict)
    marks: dict[int, float] = field(default_factory=dict)

    def start(self, now: float) -> None:
        """Begin the ledger at `now`; a second call changes nothing."""
        if not self.started_at:
            self.started_at = self.since = self.began = now

    def charge(self, now: float) -> None:
        """Book the time up to `now` on the running phase."""
        if self.started_at and now > self.since:
            self._book(self.phase, now - self.since)
            self.since = now

    def switch(
        self, phase: GoodputPhase, now: float, *, cause: Cause | None = None, node: str | None = None
    ) -> None:
        """End the running phase and begin `phase`; cause and node say whom the time is charged to."""
        self.charge(now)
        if phase is not self.phase:
            self.began = now
        self.phase, self.cause, self.node = phase, cause, node

    def blame(self, cause: Cause, node: str | None) -> None:
        """Charge what is booked from now on to `cause` and `node`."""
        self.cause, self.node = cause, node

    def move(self, source: GoodputPhase, target: GoodputPhase, seconds: float) -> float:
        """Rebook up to `seconds` from one phase to another; returns what was moved."""
        moved = max(0.0, min(seconds, self.seconds.get(source, 0.0)))
        if moved:
            self.seconds[source] -= moved
            self._book(target, moved)
        return moved

    def productive_s(self) -> float:
        """Productive seconds booked so far."""
        return self.seconds.get(GoodputPhase.PRODUCTIVE, 0.0)

    def mark_step(self, step: int, productive_s: float) -> None:
        """Remember how much productive time had passed when `step` was completed."""
        self.marks[step] = productive_s
        while len(self.marks) > _MARKS_KEPT:
            del self.marks[min(self.marks)]

    def lose_work_after(self, step: int) -> float:
        """Rebook the productive time spent after `step` (0 = all since the start) as lost work."""
        lost = self.productive_s() - self._reached(step)
        self.marks = {s: p for s, p in self.marks.items() if s <= step}
        return self.move(GoodputPhase.PRODUCTIVE, GoodputPhase.LOST_WORK, lost)

    def _reached(self, step: int) -> float:
        """Productive time at `step`; between two marks in proportion, after the last as if just now."""
        if step in self.marks or step <= 0:
            return self.marks.get(step, 0.0)
        below = max((s for s in self.marks if s < step), default=0)
        above = min((s for s in self.marks if s > step), default=None)
        if above is None:
            return self.productive_s()
        start = self.marks.get(below, 0.0)
        return start + (self.marks[above] - start) * (step - below) / (above - below)

    def wall_s(self) -> float:
        return sum(self.seconds.values())

    def _book(self, phase: GoodputPhase, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        if phase is GoodputPhase.PRODUCTIVE:
            return
        for account, key in ((self.by_cause, self.cause), (self.by_node, self.node)):
            if key:
                _add(account, key, phase, seconds)


def _add(account: dict[str, dict[str, float]], key: str, phase: str, seconds: float) -> None:
    phases = account.setdefault(key, {})
    phases[phase] = phases.get(phase, 0.0) + seconds
    if len(account) <= _ACCOUNTS_KEPT:
        return
    smallest = min((k for k in account if k not in (key, _OTHERS)), key=lambda k: sum(account[k].values()))
    others = account.setdefault(_OTHERS, {})
    for merged, amount in account.pop(smallest).items():
        others[merged] = others.get(merged, 0.0) + amount
