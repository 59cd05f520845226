"""The goodput ledger: every second of a job belongs to exactly one phase.

The phases always sum to wall time. A fault turns productive seconds after the commit it falls back to
into lost work, and the seconds between fault and detection into detection; both only move seconds
between phases, so the sum stays.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

_MARKS_KEPT = 64


class GoodputPhase(enum.StrEnum):
    """Closed set (contracts 7)."""

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
        since: when the running phase began, or was last charged; 0.0 before the job starts.
        marks: step -> productive seconds when it was reached, to price lost work.
    """

    phase: GoodputPhase = GoodputPhase.STARTUP
    since: float = 0.0
    started_at: float = 0.0
    cause: str = ""
    node: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    by_cause: dict[str, dict[str, float]] = field(default_factory=dict)
    by_node: dict[str, dict[str, float]] = field(default_factory=dict)
    marks: dict[int, float] = field(default_factory=dict)

    def start(self, now: float) -> None:
        """Begin the account; a second call changes nothing."""
        if not self.started_at:
            self.started_at = self.since = now

    def charge(self, now: float) -> None:
        """Book the time up to `now` on the running phase."""
        if self.started_at and now > self.since:
            self._book(self.phase, now - self.since)
            self.since = now

    def switch(self, phase: GoodputPhase, now: float, *, cause: str = "", node: str = "") -> None:
        """End the running phase and begin `phase`; cause and node say whom the time is charged to."""
        self.charge(now)
        self.phase, self.cause, self.node = phase, cause, node

    def move(self, source: GoodputPhase, target: GoodputPhase, seconds: float) -> float:
        """Rebook up to `seconds` from one phase to another; returns what was moved."""
        moved = max(0.0, min(seconds, self.seconds.get(source, 0.0)))
        if moved:
            self.seconds[source] -= moved
            self._book(target, moved)
        return moved

    def mark_step(self, step: int, now: float) -> None:
        """Remember how much productive time had passed when `step` was reached."""
        self.charge(now)
        self.marks[step] = self.seconds.get(GoodputPhase.PRODUCTIVE, 0.0)
        while len(self.marks) > _MARKS_KEPT:
            del self.marks[min(self.marks)]

    def lose_work_after(self, step: int) -> float:
        """Rebook the productive time spent after `step` (0 = all since the start) as lost work."""
        productive = self.seconds.get(GoodputPhase.PRODUCTIVE, 0.0)
        lost = productive - (self.marks.get(step, productive) if step else 0.0)
        self.marks = {s: p for s, p in self.marks.items() if s <= step}
        return self.move(GoodputPhase.PRODUCTIVE, GoodputPhase.LOST_WORK, lost)

    def wall_s(self) -> float:
        return sum(self.seconds.values())

    def goodput(self) -> float:
        """Productive share of wall time, 0 to 1; 1.0 before any time has passed."""
        wall = self.wall_s()
        return self.seconds.get(GoodputPhase.PRODUCTIVE, 0.0) / wall if wall else 1.0

    def _book(self, phase: GoodputPhase, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
        if phase is GoodputPhase.PRODUCTIVE:
            return
        for account, key in ((self.by_cause, self.cause), (self.by_node, self.node)):
            if key:
                account.setdefault(key, {})
                account[key][phase] = account[key].get(phase, 0.0) + seconds
