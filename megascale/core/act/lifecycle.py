"""Moves the job between its states: assemble nodes, launch, stop, suspend, finish, reopen."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from megascale.core.act import node_checks
from megascale.core.act.exclusion import release_unwanted
from megascale.core.act.lineage import begin_attempt
from megascale.core.act.node_losses import release_shared, settle
from megascale.core.act.specs import apply_waiting
from megascale.core.contract import effects as fx
from megascale.core.contract.vocabulary import (
    Action,
    FinishState,
    Milestone,
    PlanKind,
    RankPhase,
    Tier,
    Timer,
)
from megascale.core.decide.cadence import measured
from megascale.core.decide.placement import choose_nodes
from megascale.core.decide.restore import nothing_trusted, restore_point
from megascale.core.state.context import StepContext
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.hang import PhaseBoard
from megascale.core.state.incidents import close_incident
from megascale.core.state.record import (
    TEXT_KEPT,
    JobState,
    Milestones,
    NodeStatus,
    Plan,
    pace_detector,
    shortened,
)

_KILL_SLACK_S: Final = 5.0
_GONE_KEPT_S: Final = 3600.0
_RESTARTING: Final = "(restarting)"
_PACE_MARKS: Final = 32


def assemble(ctx: StepContext) -> None:
    """Launch when enough nodes are usable; otherwise ask for what is missing and wait."""
    record = ctx.record
    record.state = JobState.ASSEMBLING
    if ctx.policy.suspend:
        suspend(ctx, "spec.suspend is set")
        return
    if Timer.BACKOFF in record.deadlines:
        replenish(ctx)
        return
    if node_checks.is_under_way(ctx):
        return
    if nothing_trusted(ctx):
        reason = "no checkpoint is trusted any more; starting over from scratch is not decided here"
        ctx.emit(fx.Page, reason)
        finish(ctx, FinishState.FAILED, reason)
        return
    release_shared(ctx)
    nodes = choose_nodes(ctx, ctx.policy.nodes)
    if nodes is None and _may_shrink(ctx):
        nodes = _shrunk(ctx)
    if nodes is not None:
        launch(ctx, nodes)
        return
    _wait_for_nodes(ctx)
    replenish(ctx)


def _wait_for_nodes(ctx: StepContext) -> None:
    record = ctx.record
    if record.ledger.phase is not GoodputPhase.WAITING_FOR_NODES:
        cause, node = (record.incident.cause, record.incident.node) if record.incident else (None, None)
        record.ledger.switch(GoodputPhase.WAITING_FOR_NODES, ctx.now, cause=cause, node=node)
    if not record.waiting_since:
        record.waiting_since = ctx.now
        if ctx.policy.min_nodes < ctx.policy.nodes:
            ctx.set_deadline(Timer.SHRINK, ctx.policy.shrink_after_s)


def _may_shrink(ctx: StepContext) -> bool:
    since = ctx.record.waiting_since
    return since > 0 and ctx.now - since >= ctx.policy.shrink_after_s


def _shrunk(ctx: StepContext) -> tuple[str, ...] | None:
    """The largest allowed layout that the usable nodes can fill, never below `min_nodes`."""
    for count in sorted(ctx.policy.node_counts, reverse=True):
        if ctx.policy.min_nodes <= count < ctx.policy.nodes and (nodes := choose_nodes(ctx, count)):
            incident = ctx.record.incident
            if incident:
                waited_s = ctx.now - ctx.record.waiting_since
                incident.action = Action.SHRINK
                incident.decision += f"; no spare came in {waited_s:.0f} s, going on with {count} nodes"
            return nodes
    return None


def replenish(ctx: StepContext) -> None:
    """Ask the fleet for the nodes that are missing from training and spares."""
    record, policy = ctx.record, ctx.policy
    held_off = Timer.ACQUIRE_RETRY in record.deadlines or Timer.RECONNECT in record.deadlines
    if held_off or record.state in (JobState.SUSPENDED, JobState.FINISHED):
        return
    out = record.excluded.keys() | record.draining.keys() | record.lost.keys()
    nodes, gone = ctx.live.nodes, NodeStatus.GONE
    alive = len([name for name, node in nodes.items() if node.status is not gone and name not in out])
    wanted = policy.nodes + policy.spare_nodes
    if policy.spares_after_launch and record.attempt == 0:
        wanted = policy.nodes
    missing = wanted - alive - record.outstanding
    if missing > 0:
        record.outstanding += missing
        avoid = tuple(sorted(record.excluded))
        ctx.emit(fx.Acquire, f"{missing} of {wanted} nodes are missing", count=missing, avoid=avoid)
        ctx.set_deadline(Timer.ACQUIRED, policy.startup_s)


def launch(ctx: StepContext, nodes: tuple[str, ...]) -> None:
    """Begin the next attempt on `nodes`, from the newest trusted checkpoint or snapshot on the lineage."""
    record, incident = ctx.record, ctx.record.incident
    resume, tier = restore_point(ctx, nodes)
    settle(ctx, incident)
    apply_waiting(ctx)
    begin_attempt(ctx, resume)
    warm = set(nodes) <= set(record.assignment)
    if len(nodes) != len(record.assignment):
        ctx.live.speed = pace_detector()
    record.assignment, record.ranks = nodes, len(nodes) * ctx.policy.ranks_per_node
    record.tier = tier
    record.state, record.plan, record.launched_at = JobState.LAUNCHING, None, ctx.now
    record.waiting_since, record.refusals = 0.0, 0
    cause, node = (incident.cause, incident.node) if incident else (None, None)
    phase = GoodputPhase.RECOVERY if incident else GoodputPhase.STARTUP
    record.ledger.switch(phase, ctx.now, cause=cause, node=node)
    _price_lost_work(ctx, resume.step if resume else 0)
    _forget_attempt(ctx, resume.step if resume else 0)
    ctx.clear_deadline(
        Timer.SHRINK,
        Timer.GROW,
        Timer.HANG,
        Timer.FLAP,
        Timer.EVIDENCE,
        Timer.KILL,
        Timer.SAVE,
        Timer.LEAVING,
    )
    ctx.set_deadline(Timer.STARTUP, _startup_bound_s(ctx, resumes=resume is not None, tier=tier, warm=warm))
    where = " in memory" if tier == Tier.MEMORY else ""
    origin = f"from step {resume.step} of attempt {resume.attempt}{where}" if resume else "from scratch"
    cadence = measured(ctx) if ctx.policy.auto_cadence else None
    ctx.emit(
        fx.Launch,
        f"attempt {record.attempt} on {len(nodes)} nodes, {origin}"
        + (f"; checkpoints {cadence.reason}" if cadence else ""),
        attempt=record.attempt,
        nodes=nodes,
        resume=resume,
        lineage=dict(record.lineage),
        revision=record.spec.running,
        save_every_steps=cadence.steps if cadence else 0,
        tier=tier,
    )
    replenish(ctx)


def _startup_bound_s(ctx: StepContext, *, resumes: bool, tier: Tier, warm: bool) -> float:
    """Seconds from launch to first step; the learnt bound applies only to nodes that ran the job before."""
    limit_s = ctx.policy.startup_s
    return ctx.record.clock.launch_bound_s(tier, limit_s) if resumes and warm else limit_s


def _price_lost_work(ctx: StepContext, step: int) -> None:
    """Move the productive time spent after `step`, where the job resumes, to lost work.

    A script that resumes from checkpoints of its own shows only by its first step how far it fell back, so
    its marks are kept until then.
    """
    ledger = ctx.record.ledger
    if step == 0 and not ctx.policy.reports_steps:
        for at, productive in ctx.live.pace[:: max(1, len(ctx.live.pace) // _PACE_MARKS)]:
            ledger.mark_step(at, productive)
        ctx.live.unpriced = bool(ctx.live.pace)
        return
    reached = next((productive for at, productive in ctx.live.pace if at >= step), None)
    if step > max(ledger.marks, default=0) and reached is not None:
        ledger.mark_step(step, reached)
    ledger.lose_work_after(step)


def _forget_attempt(ctx: StepContext, step: int) -> None:
    live, record = ctx.live, ctx.record
    live.nodes = {
        name: node
        for name, node in live.nodes.items()
        if node.status is not NodeStatus.GONE
        or ctx.now - node.heard_until < _GONE_KEPT_S
        or name in record.excluded
    }
    live.milestones, live.exits, live.left_first = Milestones(), {}, None
    record.saves.attempt_stall_s = record.saves.attempt_snapshot_s = 0.0
    live.phases, live.pace = PhaseBoard(), []
    live.stragglers, live.probes = None, {}
    live.numerics.step, live.numerics.good_step = step, step
    live.numerics.kind, live.numerics.count = None, 0
    live.step, live.phase = step, RankPhase.STARTUP
    live.progress_at, live.quiet_until = ctx.now, 0.0


def stop(ctx: StepContext, plan: Plan) -> None:
    """Kill the ranks of the current attempt, and carry out `plan` once they are reaped."""
    record = ctx.record
    record.plan = plan
    record.state = JobState.STOPPING
    ctx.clear_deadline(
        Timer.STARTUP, Timer.HANG, Timer.FLAP, Timer.EVIDENCE, Timer.SAVE, Timer.LEAVING, Timer.GROW
    )
    ctx.drop_pending(fx.Launch, fx.CollectEvidence, fx.SaveNow)
    nodes = tuple(n for n in record.assignment if _is_reachable(ctx, n))
    ctx.emit(fx.Kill, plan.reason, attempt=record.attempt, nodes=nodes, deadline_s=ctx.policy.kill_s)
    ctx.set_deadline(Timer.KILL, ctx.policy.kill_s + _KILL_SLACK_S)


def _is_reachable(ctx: StepContext, name: str) -> bool:
    node = ctx.live.nodes.get(name)
    return node is not None and node.status is not NodeStatus.GONE


def nobody_left_to_stop(ctx: StepContext) -> bool:
    """Whether the job is stopping and every node that has to answer the Kill is gone."""
    return ctx.record.state is JobState.STOPPING and not any(
        _is_reachable(ctx, name) for name in ctx.record.assignment
    )


def stopped(ctx: StepContext) -> None:
    """All ranks that can be reaped are reaped: carry out the plan."""
    record, incident = ctx.record, ctx.record.incident
    plan = record.plan or Plan(PlanKind.RELAUNCH, "")
    record.state = JobState.ASSEMBLING
    ctx.clear_deadline(Timer.KILL)
    ctx.drop_pending(fx.Kill)
    if incident:
        incident.mark(Milestone.STOPPED, ctx.now)
    release_unwanted(ctx)
    if incident and incident.node and incident.action == Action.RESTART_CONTAINER:
        _restart_container(ctx, incident.node, incident.reason)
    if plan.state is not None:
        finish(ctx, plan.state, plan.reason)
    elif plan.then == PlanKind.SUSPEND:
        suspend(ctx, plan.reason)
    elif not node_checks.begin(ctx, incident):
        assemble(ctx)


def _restart_container(ctx: StepContext, name: str, reason: str) -> None:
    """Restart the node's container; the node is UNKNOWN until its agent joins with a new incarnation."""
    node = ctx.live.nodes.get(name)
    if node is None or node.status is NodeStatus.GONE or ctx.is_excluded(name):
        return
    node.status, node.incarnation = NodeStatus.UNKNOWN, _RESTARTING
    node.heard_until = ctx.now + ctx.policy.startup_s
    ctx.live.snapshots.pop(name, None)
    ctx.emit(fx.RestartSlot, reason, node=name)


def suspend(ctx: StepContext, reason: str) -> None:
    """Hold no ranks until the job is resumed."""
    record = ctx.record
    record.state, record.plan = JobState.SUSPENDED, None
    record.suspended_by_spec = ctx.policy.suspend
    record.ledger.switch(GoodputPhase.SUSPENDED, ctx.now)
    node_checks.end(ctx)
    ctx.clear_deadline(Timer.SHRINK, Timer.ACQUIRE_RETRY, Timer.ACQUIRED, Timer.APPLY_SPEC, Timer.BACKOFF)
    ctx.drop_pending(fx.Acquire)
    record.outstanding, record.waiting_since, record.refusals = 0, 0.0, 0
    close_incident(ctx, f"suspended: {reason}")


def finish(ctx: StepContext, state: FinishState, reason: str) -> None:
    """End the job and have the shell release every node."""
    record = ctx.record
    record.state, record.plan = JobState.FINISHED, None
    record.finish_state, record.finish_reason = state, shortened(reason, 2 * TEXT_KEPT)
    record.assignment = record.spares = ()
    record.lost, record.draining = {}, {}
    record.waiting_since = 0.0
    record.ledger.switch(GoodputPhase.SUSPENDED, ctx.now)
    record.deadlines.clear()
    record.pending.clear()
    close_incident(ctx, f"job {state}")
    ctx.emit(fx.Finish, reason, state=state)


def reopen(ctx: StepContext) -> None:
    """Start an ended job again from its newest commit, with budgets reset and every checkpoint trusted.

    Whoever reopens a job has dealt with the cause of its end; a damaged checkpoint is detected again.
    """
    record = ctx.record
    record.distrusted, record.tainted = [], {}
    record.finish_state, record.finish_reason = None, ""
    record.restarts, record.outstanding, record.refusals = {}, 0, 0
    record.failures_in_row = record.failures_at_step = record.restarts_in_row = 0
    record.spec = replace(record.spec, waiting=None, previous=None, before=None)
    assemble(ctx)
