"""Handles the results of effects: done, failed, refused, or not answered in time."""

from __future__ import annotations

from megascale.core.act.acquisition import not_acquired
from megascale.core.act.lifecycle import assemble, replenish, stopped
from megascale.core.act.recovery import respond
from megascale.core.contract import effects as fx
from megascale.core.contract.events import EffectDone, EffectFailed, FleetRefused, ProbeResult
from megascale.core.contract.vocabulary import Cause, Milestone, Timer
from megascale.core.handlers import numerics, stragglers
from megascale.core.handlers.membership import abandon_node, lose
from megascale.core.handlers.progress import begin_unwatched
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault
from megascale.core.state.record import JobState, NodeStatus, Pending


def on_done(ctx: StepContext, event: EffectDone) -> None:
    """Continue what waited for the effect."""
    record = ctx.record
    pending = record.pending.pop(event.effect_id, None)
    if pending is None:
        return
    if pending.kind == "Kill" and record.state is JobState.STOPPING:
        _on_killed(ctx, event.detail.get("unreaped"))
    elif pending.kind == "CheckNodes":
        numerics.on_checked(ctx, event.detail.get("convicted"))
    elif pending.kind == "Launch" and record.state is JobState.LAUNCHING:
        if record.incident:
            record.incident.mark(Milestone.LAUNCHED, ctx.now)
        if not ctx.policy.reports_steps:
            begin_unwatched(ctx)


def _on_killed(ctx: StepContext, unreaped: object) -> None:
    """Abandon the nodes whose ranks could not be reaped, then continue unless that already did."""
    for name in unreaped if isinstance(unreaped, list) else ():
        abandon_node(ctx, str(name))
    if ctx.record.state is JobState.STOPPING:
        stopped(ctx)


def on_failed(ctx: StepContext, event: EffectFailed) -> None:
    """Respond to an effect that failed: a failed Launch is a fault of the nodes that it names."""
    pending = ctx.record.pending.pop(event.effect_id, None)
    if pending is None:
        return
    state = ctx.record.state
    if pending.kind == "Launch" and state is JobState.LAUNCHING:
        _launch_failed(ctx, event)
    elif pending.kind == "SaveNow" and state is JobState.SAVING:
        ctx.set_deadline(Timer.SAVE, 0.0)
    elif pending.kind == "CheckNodes":
        numerics.on_check_overdue(ctx)
    elif pending.kind == "Acquire":
        not_acquired(ctx, _count(pending), event.reason)
    elif pending.kind == "RestartSlot":
        _not_restarted(ctx, pending, event.reason)
    elif pending.kind == "Probe":
        _not_probed(ctx, event.effect_id, pending, event.reason)
    elif pending.kind == "Finish":
        _not_released(ctx, event.reason)


def _not_released(ctx: StepContext, reason: str) -> None:
    """The job has ended nevertheless; a person has to see to the nodes that are left."""
    ctx.emit(fx.Page, f"the job has ended, but its nodes may not all be released: {reason}")


def _not_probed(ctx: StepContext, effect_id: str, pending: Pending, reason: str) -> None:
    """Treat a probe that failed as one that could not tell: it neither clears nor convicts the node."""
    stragglers.on_probe(ctx, ProbeResult(effect_id, str(pending.data.get("node", "")), None, reason))


def _launch_failed(ctx: StepContext, event: EffectFailed) -> None:
    node = event.nodes[0] if len(event.nodes) == 1 else None
    names = f" on {', '.join(event.nodes[:8])}" if event.nodes else ""
    respond(ctx, Fault(Cause.LAUNCH_FAILED, f"launch failed{names}: {event.reason}", node=node, at=ctx.now))


def on_refused(ctx: StepContext, event: FleetRefused) -> None:
    """The fleet cannot, or will not, do what an effect asks."""
    pending = ctx.record.pending.pop(event.effect_id, None)
    if pending is None:
        return
    if pending.kind == "Acquire":
        not_acquired(ctx, _count(pending), event.reason)
    elif pending.kind == "RestartSlot":
        _not_restarted(ctx, pending, event.reason)
    elif pending.kind == "Probe":
        _not_probed(ctx, event.effect_id, pending, event.reason)
    elif pending.kind == "Finish":
        _not_released(ctx, event.reason)
    elif pending.kind == "RequestQuarantine" and ctx.record.incident:
        ctx.record.incident.add_evidence(f"quarantine refused: {event.reason}")


def _count(pending: Pending) -> int:
    """How many nodes a pending Acquire asks for."""
    count = pending.data.get("count", 0)
    return count if isinstance(count, int) else 0


def _not_restarted(ctx: StepContext, pending: Pending, reason: str) -> None:
    name = str(pending.data.get("node", ""))
    node = ctx.live.nodes.get(name)
    if node is not None and node.status is NodeStatus.UNKNOWN:
        text = f"the container of {name} was not restarted: {reason}"
        lose(ctx, name, Fault(Cause.NODE_LOST, text, node=name, at=ctx.now, node_gone=True))


def on_acquired_overdue(ctx: StepContext) -> None:
    """Nodes that the fleet promised did not join in time."""
    for effect_id, pending in list(ctx.record.pending.items()):
        if pending.kind == "Acquire":
            del ctx.record.pending[effect_id]
    ctx.record.outstanding = 0
    not_acquired(ctx, 0, f"none came in {ctx.policy.startup_s:g} s")


def on_startup_overdue(ctx: StepContext) -> None:
    """No first step in time: a fault of the node that alone is late, or of no node."""
    live, record = ctx.live, ctx.record
    record.clock.forget_launches()
    late = [node for node in record.assignment if node not in live.milestones.first_step]
    waited_s, limit_s = ctx.now - record.launched_at, ctx.policy.startup_s
    # Half a second for the rounding of Unix times.
    bound = "health.startupSeconds" if waited_s > limit_s - 0.5 else "learnt from earlier launches"
    names = ", ".join(late[:5])
    reason = f"no first step within {waited_s:.0f} s of the launch ({bound}); waiting for {names}"
    respond(ctx, Fault(Cause.LAUNCH_FAILED, reason, node=late[0] if len(late) == 1 else None, at=ctx.now))


def reassemble(ctx: StepContext) -> None:
    """Look again for the nodes that are missing."""
    if ctx.record.state is JobState.ASSEMBLING:
        assemble(ctx)
    else:
        replenish(ctx)
