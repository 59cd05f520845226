"""Handles the first event of a driver life, and pauses in it: what nobody saw is held against nobody."""

from __future__ import annotations

from typing import Final

from megascale.core.act.graceful_stop import save_and_stop
from megascale.core.act.lifecycle import assemble
from megascale.core.act.node_checks import CHECK_S
from megascale.core.contract import effects as fx
from megascale.core.contract.events import DriverPaused, DriverStarted
from megascale.core.contract.vocabulary import PlanKind, Timer
from megascale.core.handlers.diagnosis import EVIDENCE_S, ask_again
from megascale.core.handlers.membership import excuse, expect
from megascale.core.handlers.newer_record import leave_unknown_state, take_out_unknown
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobRecord, JobState, Plan

_WAITS_FOR_NODES: Final = (
    Timer.KILL,
    Timer.STARTUP,
    Timer.EVIDENCE,
    Timer.FLAP,
    Timer.SAVE,
    Timer.LEAVING,
    Timer.SHRINK,
    Timer.ACQUIRED,
    Timer.CHECK,
)


def on_driver_started(ctx: StepContext, event: DriverStarted) -> None:
    """Take over from the job record; time without a driver counts against no node and no timer."""
    record, live, policy = ctx.record, ctx.live, ctx.policy
    succeeds = record.ledger.started_at > 0
    record.term = event.term
    record.ledger.start(ctx.now)
    _complete(record)
    unknown = take_out_unknown(ctx)
    ctx.effects += ctx.pending_effects()
    if unknown:
        ctx.emit(fx.Page, f"a newer version wrote the job record; left out of it: {', '.join(unknown)}")
    resumed = record.lineage.get(record.attempt)
    live.step, live.progress_at = resumed.step if resumed else 0, ctx.now
    live.evidence_id = next((i for i, p in record.pending.items() if p.kind == "CollectEvidence"), None)
    if record.state is JobState.FINISHED:
        return
    for name in (*record.assignment, *record.spares):
        if name not in record.excluded and name not in record.lost:
            expect(ctx, name)
    if not succeeds:
        assemble(ctx)
        return
    ask_again(ctx)
    # Agents reconnect within the grace time; until then missing nodes are not replaced.
    ctx.set_deadline(Timer.RECONNECT, policy.reconnect_grace_s)
    for name in _WAITS_FOR_NODES:
        if name in record.deadlines:
            record.deadlines[name] = max(
                record.deadlines[name], ctx.now + policy.reconnect_grace_s + _slack(ctx, name)
            )
    ctx.clear_deadline(Timer.HANG)
    if record.waiting_since:
        record.waiting_since = ctx.now
    leave_unknown_state(ctx)
    if record.state is JobState.RUNNING:
        ctx.set_deadline(Timer.HANG, policy.reconnect_grace_s + policy.startup_s)
    if policy.suspend:
        save_and_stop(ctx, Plan(PlanKind.SUSPEND, "spec.suspend is set"))
    elif (record.state is JobState.SUSPENDED and record.suspended_by_spec) or (
        record.state is JobState.ASSEMBLING and not record.assignment
    ):
        assemble(ctx)


def _complete(record: JobRecord) -> None:
    """Fill in what an older version did not note during a launch: when the launch began."""
    if record.attempt and not record.launched_at:
        record.launched_at = record.ledger.began


def on_driver_paused(ctx: StepContext, event: DriverPaused) -> None:
    """Stop the clock for the pause: it counts against no timer, no step and no node."""
    record, live = ctx.record, ctx.live
    record.deadlines = {name: at + event.gap_s for name, at in record.deadlines.items()}
    if record.waiting_since:
        record.waiting_since += event.gap_s
    if record.state is JobState.LAUNCHING:
        record.launched_at += event.gap_s
    live.progress_at = min(ctx.now, live.progress_at + event.gap_s)
    excuse(ctx, event.gap_s)


def _slack(ctx: StepContext, timer: Timer) -> float:
    """Seconds that the answer may take when the effect is issued again."""
    policy = ctx.policy
    known = {
        Timer.KILL: policy.kill_s,
        Timer.EVIDENCE: EVIDENCE_S,
        Timer.SAVE: policy.save_s,
        Timer.CHECK: CHECK_S,
        Timer.SHRINK: policy.shrink_after_s - policy.reconnect_grace_s,
    }
    return max(0.0, known.get(timer, policy.silence_s))
