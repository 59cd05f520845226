"""Shadow mode: decide, record and count what would have been done, and do nothing (design 10.6)."""

from __future__ import annotations

from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault, note_aside


def held_back(turn: Turn, detector: str, fault: Fault, would: str) -> bool:
    """Whether `detector` only watches; then what it would have done goes into the history."""
    if not turn.is_shadowed(detector):
        return False
    count(turn, detector)
    note_aside(turn, fault, "none", f"shadow mode: would {would}")
    return True


def count(turn: Turn, detector: str) -> None:
    """One more time that `detector` would have acted."""
    turn.record.shadowed[detector] = turn.record.shadowed.get(detector, 0) + 1
