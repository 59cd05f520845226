"""What running ranks report: milestones of a launch, steps, saves, and the end of an incident."""

from __future__ import annotations

from megascale.core.events import CommitDone, JobReport, NodeReport, RankProgress
from megascale.core.goodput import GoodputPhase
from megascale.core.lifecycle import close_incident
from megascale.core.lineage import Commit
from megascale.core.membership import heard, heard_all
from megascale.core.state import COMMITS_KEPT, Stage
from megascale.core.turn import Turn

_BACK_TO_SPEED = 1.2


def on_report(turn: Turn, event: NodeReport) -> None:
    """A beat counts as long as the incarnation is current; records count for the current attempt only."""
    node = turn.node(event.node, event.incarnation)
    if node is None:
        return
    heard(turn, node)
    if event.attempt != turn.record.attempt or not turn.ranks_active() or not event.ranks:
        return
    _note_milestones(turn, event.node, event.ranks)
    for rank in event.ranks:
        _note_stall(turn, rank)
    _note_step(turn, max(event.ranks, key=lambda rank: rank.step))


def on_job_report(turn: Turn, event: JobReport) -> None:
    """The same for a whole round of beats at once."""
    if event.attempt != turn.record.attempt:
        return
    heard_all(turn, event)
    if not turn.ranks_active():
        return
    for node in turn.record.assignment:
        if node not in event.absent:
            _note_milestones(turn, node, (event.progress,))
    _note_step(turn, event.progress)


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
    if len(passed.first_step) == len(turn.record.assignment) and turn.record.stage is Stage.LAUNCHING:
        _running(turn)


def _running(turn: Turn) -> None:
    """Every node completed its first step of this attempt."""
    record, passed = turn.record, turn.live.milestones
    record.stage = Stage.RUNNING
    turn.clear_deadline("startup")
    record.ledger.switch(GoodputPhase.PRODUCTIVE, turn.now)
    if record.incident:
        record.incident.mark("groups", passed.groups_at)
        record.incident.mark("loaded", passed.loaded_at)
        record.incident.mark("firstStep", passed.first_step_at)


def _note_stall(turn: Turn, rank: RankProgress) -> None:
    """Time the slowest rank was blocked by a save is checkpoint stall, not progress."""
    live = turn.live
    worst = max(live.stalls.values(), default=0.0)
    live.stalls[rank.rank] = rank.stall_seconds
    grown = max(live.stalls.values()) - worst
    if grown > 0 and turn.record.ledger.phase is GoodputPhase.PRODUCTIVE:
        turn.record.ledger.charge(turn.now)
        turn.record.ledger.move(GoodputPhase.PRODUCTIVE, GoodputPhase.CHECKPOINT_STALL, grown)


def _note_step(turn: Turn, rank: RankProgress) -> None:
    record, live = turn.record, turn.live
    if rank.phase != live.phase and rank.progress_at:
        live.clock.observe_phase(live.phase, turn.now - max(rank.progress_at, live.progress_at))
    live.phase = rank.phase
    if rank.step > live.step:
        live.clock.observe_step(rank.step_seconds)
        live.step, live.progress_at = rank.step, rank.progress_at or turn.now
        if rank.step > record.best_step:
            record.best_step, record.failures_in_row = rank.step, 0
        _stall_over(turn)
        _maybe_back_to_speed(turn, rank)
    _arm_hang(turn)


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
        record.incident.decision = "steps went on before anything was done"
        close_incident(turn, "recovered by itself")


def _maybe_back_to_speed(turn: Turn, rank: RankProgress) -> None:
    """The incident ends when lost steps are regained and the step time is normal again."""
    incident, normal = turn.record.incident, turn.live.clock.step_s()
    if incident is None or turn.record.stage is not Stage.RUNNING or normal is None:
        return
    if rank.step > incident.fault_step and rank.step_seconds <= _BACK_TO_SPEED * normal:
        incident.mark("backToSpeed", rank.progress_at or turn.now)
        close_incident(turn, "recovered")


def _arm_hang(turn: Turn) -> None:
    """A stall is suspected when the learnt bound of the phase passes without a step."""
    if turn.record.stage is not Stage.RUNNING:
        return
    policy, live = turn.policy, turn.live
    bound = live.clock.bound_s([live.phase], steps=policy.hang_steps, margin_s=policy.hang_margin_s)
    if bound is not None:
        turn.record.deadlines["hang"] = max(live.progress_at, live.quiet_until) + bound


def on_commit(turn: Turn, event: CommitDone) -> None:
    """A checkpoint is readable; whether it counts is decided by the lineage when it is needed."""
    record = turn.record
    commit = Commit(event.step, event.attempt)
    if commit in record.commits:
        return
    record.commits = sorted([*record.commits, commit])[-COMMITS_KEPT:]
    if event.attempt == record.attempt and turn.ranks_active():
        record.ledger.charge(turn.now)
        record.ledger.mark_step(event.step, record.ledger.productive_s())
