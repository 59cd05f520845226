"""Changes of the manifest: stored, applied at a restart, and reverted when they make no progress."""

from __future__ import annotations

from megascale.core.act.budgets import note_progress
from megascale.core.act.exclusion import take_back_blame
from megascale.core.contract import effects as fx
from megascale.core.contract.events import SpecChanged
from megascale.core.contract.names import short_revision
from megascale.core.contract.vocabulary import Timer
from megascale.core.state.context import StepContext
from megascale.core.state.record import Incident


def take_in(ctx: StepContext, event: SpecChanged) -> bool:
    """Apply the thresholds at once, and keep what changes the ranks for the next launch.

    Returns False, and changes nothing, for a revision that was rolled back before.
    """
    spec, before = ctx.record.spec, ctx.policy
    if event.revision and event.revision == spec.rejected:
        return False
    ctx.policy, spec.rejected = event.policy, None
    if event.restart and event.revision not in (spec.running, spec.waiting):
        if not spec.waiting:
            spec.before = before
        spec.waiting = event.revision
        ctx.set_deadline(Timer.APPLY_SPEC, ctx.policy.apply_within_s)
    elif spec.waiting and event.revision == spec.running:
        spec.waiting = None
        spec.before = spec.before if spec.previous else None
        ctx.clear_deadline(Timer.APPLY_SPEC)
    elif spec.waiting:
        spec.waiting = event.revision or spec.waiting
    else:
        # Ranks are launched alike from either of them.
        spec.running = event.revision or spec.running
    return True


def apply_waiting(ctx: StepContext) -> None:
    """At a launch: run the waiting revision, and keep the one before to revert to."""
    spec = ctx.record.spec
    ctx.clear_deadline(Timer.APPLY_SPEC)
    if spec.waiting:
        spec.previous, spec.running, spec.waiting = spec.running, spec.waiting, None
        spec.step, spec.attempt = ctx.record.best_step, ctx.record.attempt + 1
        note_progress(ctx)


def prove(ctx: StepContext) -> None:
    """Accept the running revision once the job has completed a step beyond those before it."""
    spec = ctx.record.spec
    if spec.previous and ctx.record.best_step > spec.step:
        spec.previous, spec.before = None, None


def revert(ctx: StepContext, incident: Incident) -> None:
    """Return to the revision before, with its policy, and page.

    The failures under the reverted revision were its own: no node keeps the blame for them.
    """
    spec = ctx.record.spec
    for failed in (*ctx.record.incidents, incident):
        if failed.attempt >= spec.attempt:
            take_back_blame(ctx, failed)
    text = f"spec {short_revision(spec.running)} made no progress, back to {short_revision(spec.previous)}"
    ctx.emit(fx.Page, text, incident=incident.id)
    spec.rejected, spec.running, spec.previous = spec.running, spec.previous, None
    if spec.before is not None:
        ctx.policy, spec.before = spec.before, None
    note_progress(ctx)
