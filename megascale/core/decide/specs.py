"""Changed manifests: stored, applied at the next restart or in time, rolled back when they cost progress."""

from __future__ import annotations

from megascale.core.contract import effects as fx
from megascale.core.contract.events import SpecChanged
from megascale.core.decide.breakers import note_progress
from megascale.core.state.context import Turn
from megascale.core.state.record import Incident


def take_in(turn: Turn, event: SpecChanged) -> None:
    """Thresholds count at once; what ranks run changes at the next launch."""
    spec, before = turn.record.spec, turn.policy
    turn.policy = event.policy
    if event.restart and event.revision not in (spec.running, spec.waiting):
        if not spec.waiting:
            spec.before = before
        spec.waiting = event.revision
        turn.set_deadline("applySpec", turn.policy.apply_within_s)
    elif not spec.waiting:
        spec.running = spec.running or event.revision


def apply_waiting(turn: Turn) -> None:
    """At a launch: the waiting revision becomes the running one, the one before is kept to go back to."""
    spec = turn.record.spec
    turn.clear_deadline("applySpec")
    if spec.waiting:
        spec.previous, spec.running, spec.waiting = spec.running, spec.waiting, ""
        spec.step = turn.record.best_step
        note_progress(turn)


def prove(turn: Turn) -> None:
    """A step that was never completed before: the running revision works."""
    spec = turn.record.spec
    if spec.previous and turn.record.best_step > spec.step:
        spec.previous, spec.before = "", None


def revert(turn: Turn, incident: Incident) -> None:
    """Back to the revision that made progress, with its policy."""
    spec = turn.record.spec
    turn.emit(fx.Page, f"spec {spec.running} made no progress, back to {spec.previous}", incident=incident.id)
    spec.running, spec.previous = spec.previous, ""
    if spec.before is not None:
        turn.policy, spec.before = spec.before, None
    note_progress(turn)
