"""The first event of a driver's life: pending effects again, nodes unknown until they report."""

from __future__ import annotations

from typing import Final

from megascale.core.act.graceful_stop import save_and_stop
from megascale.core.act.lifecycle import assemble
from megascale.core.contract.events import DriverStarted
from megascale.core.decide.nodecheck import CHECK, CHECK_S
from megascale.core.handlers.diagnosis import EVIDENCE_S
from megascale.core.handlers.membership import expect
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobState, Plan

_WAITS_FOR_NODES: Final = (
    "kill",
    "startup",
    "evidence",
    "flap",
    "save",
    "leaving",
    "shrink",
    "acquired",
    CHECK,
)


def on_driver_started(ctx: StepContext, event: DriverStarted) -> None:
    """Take over from the record: nothing that passed while no driver was there is held against anyone."""
    record, live, policy = ctx.record, ctx.live, ctx.policy
    succeeds = record.ledger.started_at > 0
    record.term = event.term
    record.ledger.start(ctx.now)
    ctx.effects += ctx.pending_effects()
    resumed = record.lineage.get(record.attempt)
    live.step, live.progress_at = resumed.step if resumed else 0, ctx.now
    live.evidence_id = next((i for i, p in record.pending.items() if p.kind == "CollectEvidence"), "")
    if record.state is JobState.FINISHED:
        return
    for name in (*record.assignment, *record.spares):
        if name not in record.excluded and name not in record.lost:
            expect(ctx, name, ctx.now + max(0.0, policy.reconnect_grace_s - policy.silence_s))
    if not succeeds:
        assemble(ctx)
        return
    # Agents reconnect within the grace time; until then missing nodes are not replaced.
    ctx.set_deadline("reconnect", policy.reconnect_grace_s)
    for name in _WAITS_FOR_NODES:
        if name in record.deadlines:
            record.deadlines[name] = max(
                record.deadlines[name], ctx.now + policy.reconnect_grace_s + _slack(ctx, name)
            )
    ctx.clear_deadline("hang")
    if record.waiting_since:
        record.waiting_since = ctx.now
    if record.state is JobState.RUNNING:
        ctx.set_deadline("hang", policy.reconnect_grace_s + policy.startup_s)
    if policy.suspend:
        save_and_stop(ctx, Plan("suspend", "spec.suspend is set"))
    elif (record.state is JobState.SUSPENDED and record.suspended_by_spec) or (
        record.state is JobState.ASSEMBLING and not record.assignment
    ):
        assemble(ctx)


def _slack(ctx: StepContext, timer: str) -> float:
    """What the answer is allowed to take when asked again."""
    policy = ctx.policy
    known = {
        "kill": policy.kill_s,
        "evidence": EVIDENCE_S,
        "save": policy.save_s,
        CHECK: CHECK_S,
        "shrink": policy.shrink_after_s - policy.reconnect_grace_s,
    }
    return max(0.0, known.get(timer, policy.silence_s))
