"""What running ranks report: milestones of a launch, steps, saves, and the end of an incident."""

from __future__ import annotations

from typing import Final

from megascale.core.act import drain, growth
from megascale.core.contract.events import CommitDone, JobReport, NodeReport, RankProgress
from megascale.core.contract.lineage import Commit
from megascale.core.decide.breakers import note_progress
from megascale.core.decide.restore import remember_commit
from megascale.core.decide.specs import prove
from megascale.core.handlers import numerics, throughput_decay
from megascale.core.handlers.membership import heard, heard_all
from megascale.core.state.context import Turn
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.incidents import close_incident
from megascale.core.state.record import Stage

_BACK_TO_SPEED: Final = 1.2
_PACE_KEPT: Final = 512


def on_report(turn: Turn, event: NodeReport) -> None:
    """A beat counts as long as the incarnation is current; records count for the current attempt only."""
    node = turn.node(event.node, event.incarnation)
    if node is None:
        return
    heard(turn, event.node, node)
    if event.attempt != turn.record.attempt or not turn.holds_ranks(event.node) or not event.ranks:
        return
    _note_milestones(turn, event.node, event.ranks)
    _note_stall(turn, max(event.ranks, key=lambda rank: rank.stall_seconds))
    _note_step(turn, event.node, max(event.ranks, key=lambda rank: rank.step))
    for rank in event.ranks:
        numerics.observe(turn, rank)


def on_job_report(turn: Turn, event: JobReport) -> None:
    """The same for a whole round of beats at once."""
    if event.attempt != turn.record.attempt:
        return
    heard_all(turn, event)
    if not turn.ranks_active():
        return
    if turn.record.stage is Stage.LAUNCHING:
        _note_milestones_of_all(turn, event)
    _note_stall(turn, event.progress)
    _note_step(turn, "", event.progress)
    numerics.observe(turn, event.progress)


def _note_milestones_of_all(turn: Turn, event: JobReport) -> None:
    """The same for every node that the report speaks for: sets at once, a job has thousands of nodes."""
    passed, rank = turn.live.milestones, event.progress
    nodes = set(turn.record.assignment).difference(event.absent)
    if rank.groups_at:
        passed.groups |= nodes
        passed.groups_at = max(passed.groups_at, rank.groups_at)
    if rank.loaded_at:
        passed.loaded |= nodes
        passed.loaded_at = max(passed.loaded_at, rank.loaded_at)
    if rank.first_step_at:
        passed.first_step |= nodes
        passed.first_step_at = max(passed.first_step_at, rank.first_step_at)
    _maybe_all_stepped(turn)


def _note_milestones(turn: Turn, node: str, ranks: tuple[RankProgress, ...]) -> None:
    passed = turn.live.milestones
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
    _maybe_all_stepped(turn)


def _maybe_all_stepped(turn: Turn) -> None:
    passed = turn.live.milestones.first_step
    if len(passed) == len(turn.record.assignment) and turn.record.stage is Stage.LAUNCHING:
        _all_stepped(turn)


def _all_stepped(turn: Turn) -> None:
    """Every node completed its first step of this attempt."""
    record, passed = turn.record, turn.live.milestones
    if record.lineage.get(record.attempt) is not None:
        record.clock.observe_launch(record.tier, turn.now - record.ledger.began)
    begin_running(turn)
    if record.incident:
        record.incident.mark("groups", passed.groups_at)
        record.incident.mark("loaded", passed.loaded_at)
        record.incident.mark("firstStep", passed.first_step_at)
    drain.swap_if_possible(turn)


def begin_running(turn: Turn) -> None:
    """The launch is over: from now on time is productive."""
    turn.record.stage = Stage.RUNNING
    turn.clear_deadline("startup")
    turn.record.ledger.switch(GoodputPhase.PRODUCTIVE, turn.now)
    turn.live.progress_at = turn.now
    growth.look_for_nodes(turn)


def begin_unwatched(turn: Turn) -> None:
    """A script counts as running once its ranks are started, and as recovered if it never told a step."""
    begin_running(turn)
    if turn.record.best_step == 0:
        close_incident(turn, "recovered")


def _note_stall(turn: Turn, rank: RankProgress) -> None:
    """Time the slowest rank was blocked is checkpoint stall, not progress; saves alone set their cadence."""
    live = turn.live
    grown = rank.stall_seconds - live.stall_s
    if grown <= 0:
        return
    by_snapshots = max(0.0, rank.snapshot_seconds - live.snapshot_s)
    live.stall_s, live.snapshot_s = rank.stall_seconds, max(rank.snapshot_seconds, live.snapshot_s)
    turn.record.saves.stall_s += max(0.0, grown - by_snapshots)
    ledger = turn.record.ledger
    if ledger.phase is GoodputPhase.PRODUCTIVE:
        ledger.charge(turn.now)
        ledger.move(GoodputPhase.PRODUCTIVE, GoodputPhase.CHECKPOINT_STALL, grown)


def _note_step(turn: Turn, node: str, rank: RankProgress) -> None:
    record, live = turn.record, turn.live
    left = live.phases.note(node, rank.phase)
    if left and rank.progress_at:
        ended = rank.progress_at if rank.step > live.step else turn.now
        record.clock.observe_phase(left, ended - live.progress_at)
    live.phase = rank.phase
    if rank.step > live.step:
        if live.unpriced:
            live.unpriced = False
            record.ledger.charge(turn.now)
            record.ledger.lose_work_after(rank.step - 1)
        record.clock.observe_step(rank.step_seconds)
        live.step, live.progress_at = rank.step, _seen_between(turn, rank.progress_at)
        if record.incident and not turn.policy.reports_steps:
            record.incident.mark("firstStep", rank.first_step_at or turn.now)
        _note_pace(turn)
        if rank.step > record.best_step:
            record.best_step = rank.step
            note_progress(turn)
            prove(turn)
        _stall_over(turn)
        _maybe_back_to_speed(turn, rank)
        throughput_decay.observe(turn, rank)
    live.reported_at = turn.now
    _arm_hang(turn)


def _seen_between(turn: Turn, at: float) -> float:
    """When a step was completed, by a clock that may be wrong: not before the report that lacked it."""
    since = max(turn.live.reported_at, turn.live.progress_at)
    return min(max(at or turn.now, since), turn.now)


def _note_pace(turn: Turn) -> None:
    """Remember the productive time at this step: a checkpoint of it is committed only later."""
    ledger = turn.record.ledger
    ledger.charge(turn.now)
    turn.live.pace.append((turn.live.step, ledger.productive_s()))
    del turn.live.pace[:-_PACE_KEPT]


def _stall_over(turn: Turn) -> None:
    """A suspected hang went away by itself."""
    record = turn.record
    if record.stage is not Stage.DIAGNOSING:
        return
    record.stage = Stage.RUNNING
    turn.clear_deadline("evidence", "flap")
    record.ledger.switch(GoodputPhase.PRODUCTIVE, turn.now)
    if record.incident:
        record.incident.action = "none"
        # in shadow mode it tells what would have been done
        record.incident.decision = record.incident.decision or "steps went on before anything was done"
        close_incident(turn, "recovered by itself")


def _maybe_back_to_speed(turn: Turn, rank: RankProgress) -> None:
    """The incident ends when lost steps are regained and the step time is normal again."""
    incident, normal = turn.record.incident, turn.record.clock.step_s()
    if incident is None or turn.record.stage is not Stage.RUNNING:
        return
    if rank.step > incident.fault_step and (normal is None or rank.step_seconds <= _BACK_TO_SPEED * normal):
        incident.mark("backToSpeed", rank.progress_at or turn.now)
        close_incident(turn, "recovered")


def _arm_hang(turn: Turn) -> None:
    """A stall is suspected when the learnt bound of the phase passes without a step."""
    if turn.record.stage is not Stage.RUNNING or turn.live.exits:
        return
    policy, live = turn.policy, turn.live
    bound = turn.record.clock.bound_s(
        live.phases.current(), steps=policy.hang_steps, margin_s=policy.hang_margin_s
    )
    if not policy.reports_steps and (bound is None or live.step >= policy.steps):
        turn.clear_deadline("hang")
        return
    if bound is None and not policy.reports_steps:
        return
    since = max(live.progress_at, live.quiet_until)
    turn.record.deadlines["hang"] = since + (policy.startup_s if bound is None else bound)


def on_commit(turn: Turn, event: CommitDone) -> None:
    """A checkpoint is readable; whether it counts is decided by the lineage when it is needed."""
    record, ledger = turn.record, turn.record.ledger
    if not remember_commit(turn, Commit(event.step, event.attempt)) or event.attempt != record.attempt:
        return
    record.saves.count += 1
    reached = [productive for step, productive in turn.live.pace if step >= event.step]
    ledger.charge(turn.now)
    ledger.mark_step(event.step, reached[0] if reached else ledger.productive_s())
