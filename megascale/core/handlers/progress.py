"""Handles what running ranks report: milestones of a launch, steps, saves, and the end of an incident."""

from __future__ import annotations

from typing import Final

from megascale.core.act import node_changes
from megascale.core.act.budgets import note_progress
from megascale.core.act.lineage import remember_commit
from megascale.core.act.specs import prove
from megascale.core.contract import effects as fx
from megascale.core.contract.events import CommitDone, JobReport, NodeReport, RankProgress, SnapshotReady
from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import Action, Cause, Milestone, RankPhase, Timer
from megascale.core.handlers import numerics
from megascale.core.handlers.membership import heard, heard_all
from megascale.core.state.context import StepContext
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.incidents import Fault, close_incident, note_aside
from megascale.core.state.record import JobState

_BACK_TO_SPEED: Final = 1.2
_PACE_KEPT: Final = 512
_SNAPSHOTS_KEPT: Final = 2


def on_report(ctx: StepContext, event: NodeReport) -> None:
    """Take a heartbeat of the current incarnation, and the rank records of the current attempt in it."""
    node = ctx.node(event.node, event.incarnation)
    if node is None:
        return
    heard(ctx, event.node, node)
    if event.attempt != ctx.record.attempt or not ctx.holds_ranks(event.node) or not event.ranks:
        return
    _note_milestones(ctx, event.node, event.ranks)
    _note_stall(ctx, max(event.ranks, key=lambda rank: rank.stall_seconds))
    _note_step(ctx, event.node, max(event.ranks, key=lambda rank: rank.step))
    for rank in event.ranks:
        numerics.observe(ctx, rank)


def on_job_report(ctx: StepContext, event: JobReport) -> None:
    """Take a summarised round of heartbeats."""
    if event.attempt != ctx.record.attempt:
        return
    heard_all(ctx, event)
    if not ctx.ranks_active():
        return
    if ctx.record.state is JobState.LAUNCHING:
        _note_milestones_of_all(ctx, event)
    _note_stall(ctx, event.progress)
    _note_step(ctx, None, event.progress)
    numerics.observe(ctx, event.progress)


def _note_milestones_of_all(ctx: StepContext, event: JobReport) -> None:
    """Note the milestones of all nodes that the report covers, as sets: there may be thousands."""
    passed, rank = ctx.live.milestones, event.progress
    nodes = set(ctx.record.assignment).difference(event.absent)
    if rank.groups_at:
        passed.groups |= nodes
        passed.groups_at = max(passed.groups_at, rank.groups_at)
    if rank.loaded_at:
        passed.loaded |= nodes
        passed.loaded_at = max(passed.loaded_at, rank.loaded_at)
    if rank.first_step_at:
        passed.first_step |= nodes
        passed.first_step_at = max(passed.first_step_at, rank.first_step_at)
    _maybe_all_stepped(ctx)


def _note_milestones(ctx: StepContext, node: str, ranks: tuple[RankProgress, ...]) -> None:
    passed = ctx.live.milestones
    if node in passed.first_step:
        return
    if all(rank.groups_at for rank in ranks):
        passed.groups.add(node)
        passed.groups_at = max(passed.groups_at, *(rank.groups_at for rank in ranks))
    if all(rank.loaded_at for rank in ranks):
        passed.loaded.add(node)
        passed.loaded_at = max(passed.loaded_at, *(rank.loaded_at for rank in ranks))
    if all(rank.first_step_at for rank in ranks):
        passed.first_step.add(node)
        passed.first_step_at = max(passed.first_step_at, *(rank.first_step_at for rank in ranks))
    _maybe_all_stepped(ctx)


def _maybe_all_stepped(ctx: StepContext) -> None:
    passed = ctx.live.milestones.first_step
    if len(passed) == len(ctx.record.assignment) and ctx.record.state is JobState.LAUNCHING:
        _all_stepped(ctx)


def _all_stepped(ctx: StepContext) -> None:
    """Every node completed its first step of this attempt."""
    record, passed = ctx.record, ctx.live.milestones
    if record.lineage.get(record.attempt) is not None:
        record.clock.observe_launch(record.tier, ctx.now - record.launched_at)
    begin_running(ctx)
    if record.incident:
        record.incident.mark(Milestone.GROUPS, passed.groups_at)
        record.incident.mark(Milestone.LOADED, passed.loaded_at)
        record.incident.mark(Milestone.FIRST_STEP, passed.first_step_at)
    node_changes.replace_draining(ctx)


def begin_running(ctx: StepContext) -> None:
    """End the launch: from now on time is productive."""
    ctx.record.state = JobState.RUNNING
    ctx.clear_deadline(Timer.STARTUP)
    ctx.record.ledger.switch(GoodputPhase.PRODUCTIVE, ctx.now)
    ctx.live.progress_at = ctx.now
    node_changes.grow_later(ctx)


def begin_unwatched(ctx: StepContext) -> None:
    """A plain script runs once its ranks are started, and has recovered then if it reports no steps."""
    begin_running(ctx)
    if not ctx.steps_are_known():
        close_incident(ctx, "recovered")


def _note_stall(ctx: StepContext, rank: RankProgress) -> None:
    """Move the time that the slowest rank was blocked to checkpoint stall; snapshots set no cadence."""
    saves = ctx.record.saves
    stalled_s, snapshot_s = saves.attempt_stall_s, saves.attempt_snapshot_s
    if stalled_s is None or snapshot_s is None:
        saves.attempt_stall_s, saves.attempt_snapshot_s = rank.stall_seconds, rank.snapshot_seconds
        return
    grown = rank.stall_seconds - stalled_s
    if grown <= 0:
        return
    by_snapshots = max(0.0, rank.snapshot_seconds - snapshot_s)
    saves.attempt_stall_s, saves.attempt_snapshot_s = rank.stall_seconds, snapshot_s + by_snapshots
    saves.stall_s += max(0.0, grown - by_snapshots)
    ledger = ctx.record.ledger
    if ledger.phase is GoodputPhase.PRODUCTIVE:
        ledger.charge(ctx.now)
        ledger.move(GoodputPhase.PRODUCTIVE, GoodputPhase.CHECKPOINT_STALL, grown)


def _note_step(ctx: StepContext, node: str | None, rank: RankProgress) -> None:
    record, live = ctx.record, ctx.live
    left = live.phases.note(node, rank.phase)
    if left and rank.progress_at:
        ended = rank.progress_at if rank.step > live.step else ctx.now
        record.clock.observe_phase(left, ended - live.progress_at)
    live.phase = rank.phase
    if rank.step > live.step:
        if live.unpriced:
            live.unpriced = False
            record.ledger.charge(ctx.now)
            record.ledger.lose_work_after(rank.step - 1)
        record.clock.observe_step(rank.step_seconds)
        live.step, live.progress_at = rank.step, _seen_between(ctx, rank.progress_at)
        if record.incident and not ctx.policy.reports_steps:
            record.incident.mark(Milestone.FIRST_STEP, rank.first_step_at or ctx.now)
        _note_pace(ctx)
        if rank.step > record.best_step:
            record.best_step = rank.step
            note_progress(ctx)
            prove(ctx)
        _stall_over(ctx)
        _maybe_back_to_speed(ctx, rank)
        _watch_throughput(ctx, rank)
    live.reported_at = ctx.now
    _arm_hang(ctx)


def _watch_throughput(ctx: StepContext, rank: RankProgress) -> None:
    """Page when the job gets slower than it has been: restarting does not cure code."""
    if ctx.record.state is not JobState.RUNNING or rank.step_seconds <= 0:
        return
    anomaly = ctx.live.speed.observe(rank.step, 1.0 / rank.step_seconds)
    if anomaly is not None:
        fault = Fault(Cause.SLOW, anomaly.reason, at=ctx.now)
        incident = note_aside(
            ctx, fault, Action.NONE, "MFU decays with the pace; a person looks for the cause"
        )
        ctx.emit(fx.Page, f"MFU decays: {anomaly.reason}", incident=incident.id)


def _seen_between(ctx: StepContext, at: float) -> float:
    """When a step was completed: the rank's clock may be off, but it was after the report that lacked it."""
    since = max(ctx.live.reported_at, ctx.live.progress_at)
    return min(max(at or ctx.now, since), ctx.now)


def _note_pace(ctx: StepContext) -> None:
    """Keep the productive time at this step, for the commit of it that comes later."""
    ledger = ctx.record.ledger
    ledger.charge(ctx.now)
    ctx.live.pace.append((ctx.live.step, ledger.productive_s()))
    del ctx.live.pace[:-_PACE_KEPT]


def _stall_over(ctx: StepContext) -> None:
    """A step was completed: the suspected hang is over."""
    record = ctx.record
    if record.state is not JobState.DIAGNOSING:
        return
    record.state = JobState.RUNNING
    ctx.clear_deadline(Timer.EVIDENCE, Timer.FLAP)
    record.ledger.switch(GoodputPhase.PRODUCTIVE, ctx.now)
    if record.incident:
        record.incident.action = Action.NONE
        # in shadow mode the decision says what would have been done
        record.incident.decision = record.incident.decision or "steps went on before anything was done"
        close_incident(ctx, "recovered by itself")


def _maybe_back_to_speed(ctx: StepContext, rank: RankProgress) -> None:
    """Close the incident when lost steps are regained and the step time is normal again."""
    incident, normal = ctx.record.incident, ctx.record.clock.step_s()
    if incident is None or ctx.record.state is not JobState.RUNNING:
        return
    if rank.step > incident.fault_step and (normal is None or rank.step_seconds <= _BACK_TO_SPEED * normal):
        incident.mark(Milestone.BACK_TO_SPEED, rank.progress_at or ctx.now)
        close_incident(ctx, "recovered")


def _arm_hang(ctx: StepContext) -> None:
    """Arm the HANG timer for when the learnt bound of the phases has passed without a step."""
    if ctx.record.state is not JobState.RUNNING or ctx.live.exits:
        return
    policy, live = ctx.policy, ctx.live
    bound = ctx.record.clock.bound_s(
        live.phases.current(), steps=policy.hang_steps, margin_s=policy.hang_margin_s
    )
    if not policy.reports_steps and (bound is None or live.step >= policy.steps):
        ctx.clear_deadline(Timer.HANG)
        return
    if bound is None and not policy.reports_steps:
        return
    if bound is not None and RankPhase.SAVING_AGAIN in live.phases.current():
        bound += 2.0 * policy.save_s
    since = max(live.progress_at, live.quiet_until)
    ctx.record.deadlines[Timer.HANG] = since + (policy.startup_s if bound is None else bound)


def on_commit(ctx: StepContext, event: CommitDone) -> None:
    """A checkpoint is committed; keep it, and the productive time that it holds."""
    record, ledger = ctx.record, ctx.record.ledger
    if not remember_commit(ctx, Commit(event.step, event.attempt)) or event.attempt != record.attempt:
        return
    record.saves.count += 1
    reached = [productive for step, productive in ctx.live.pace if step >= event.step]
    ledger.charge(ctx.now)
    ledger.mark_step(event.step, reached[0] if reached else ledger.productive_s())


def on_snapshot(ctx: StepContext, event: SnapshotReady) -> None:
    """Remember the newest snapshots in memory of the node; the agent overwrites them in this order, too."""
    known = {*ctx.live.snapshots.get(event.node, ()), Commit(event.step, event.attempt)}
    newest = sorted(known, key=lambda snapshot: (snapshot.attempt, snapshot.step))
    ctx.live.snapshots[event.node] = tuple(newest[-_SNAPSHOTS_KEPT:])
