"""Shadow mode: decide, record and count what would have been done, and do nothing (design 10.6)."""

from __future__ import annotations

from megascale.core.contract.vocabulary import Action, Detector
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, note_aside


def suppressed_by_shadow_mode(ctx: StepContext, detector: Detector, fault: Fault, would: str) -> bool:
    """Whether `detector` only watches; then what it would have done goes into the history."""
    if not ctx.is_shadowed(detector):
        return False
    count(ctx, detector)
    note_aside(ctx, fault, Action.NONE, f"shadow mode: would {would}")
    return True


def count(ctx: StepContext, detector: Detector) -> None:
    """One more time that `detector` would have acted."""
    ctx.record.shadowed[detector] = ctx.record.shadowed.get(detector, 0) + 1
