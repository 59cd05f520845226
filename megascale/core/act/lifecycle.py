"""From nodes to ranks and back: assemble, launch, stop, suspend, finish."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.decide import nodecheck
from megascale.core.decide.blame import release_unwanted
from megascale.core.decide.cadence import measured
from megascale.core.decide.memory_tier import forget
from megascale.core.decide.node_losses import release_shared, settle
from megascale.core.decide.placement import choose_nodes
from megascale.core.decide.restore import begin_attempt, nothing_trusted, restore_point
from megascale.core.decide.specs import apply_waiting
from megascale.core.state.context import Turn
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.hang import PhaseBoard
from megascale.core.state.incidents import close_incident
from megascale.core.state.record import Milestones, NodeStatus, Plan, Stage, pace_detector

_KILL_SLACK_S: Final = 5.0
_GONE_KEPT_S: Final = 3600.0
_RESTARTING: Final = "(restarting)"
_PACE_MARKS: Final = 32


def assemble(turn: Turn) -> None:
    """Launch when enough nodes are usable; otherwise ask for what is missing and wait."""
    record = turn.record
    record.stage = Stage.ASSEMBLING
    if turn.policy.suspend:
        suspend(turn, "spec.suspend is set")
        return
    if nodecheck.is_under_way(turn):
        return
    if nothing_trusted(turn):
        reason = "no checkpoint is trusted any more; starting over from scratch is not decided here"
        turn.emit(fx.Page, reason)
        finish(turn, "failed", reason)
        return
    release_shared(turn)
    nodes = choose_nodes(turn, turn.policy.nodes)
    if nodes is None and _may_shrink(turn):
        nodes = _shrunk(turn)
    if nodes is not None:
        launch(turn, nodes)
        return
    _wait_for_nodes(turn)
    replenish(turn)


def _wait_for_nodes(turn: Turn) -> None:
    record = turn.record
    if record.ledger.phase is not GoodputPhase.WAITING_FOR_NODES:
        cause, node = (record.incident.cause, record.incident.node) if record.incident else ("", "")
        record.ledger.switch(GoodputPhase.WAITING_FOR_NODES, turn.now, cause=cause, node=node)
    if not record.waiting_since:
        record.waiting_since = turn.now
        if turn.policy.min_nodes < turn.policy.nodes:
            turn.set_deadline("shrink", turn.policy.shrink_after_s)


def _may_shrink(turn: Turn) -> bool:
    since = turn.record.waiting_since
    return since > 0 and turn.now - since >= turn.policy.shrink_after_s


def _shrunk(turn: Turn) -> tuple[str, ...] | None:
    """The largest allowed layout that the usable nodes can fill, never below `min_nodes`."""
    for count in sorted(turn.policy.node_counts, reverse=True):
        if turn.policy.min_nodes <= count < turn.policy.nodes and (nodes := choose_nodes(turn, count)):
            incident = turn.record.incident
            if incident:
                waited_s = turn.now - turn.record.waiting_since
                incident.action = "shrink"
                incident.decision += f"; no spare came in {waited_s:.0f} s, going on with {count} nodes"
            return nodes
    return None


def replenish(turn: Turn) -> None:
    """Ask the fleet for the nodes missing from training and spares."""
    record, policy = turn.record, turn.policy
    held_off = "acquireRetry" in record.deadlines or "reconnect" in record.deadlines
    if held_off or record.stage in (Stage.SUSPENDED, Stage.FINISHED):
        return
    out = record.excluded.keys() | record.draining.keys() | record.lost.keys()
    nodes, gone = turn.live.nodes, NodeStatus.GONE
    alive = len([name for name, node in nodes.items() if node.status is not gone and name not in out])
    wanted = policy.nodes + policy.spare_nodes
    if policy.spares_after_launch and record.attempt == 0:
        wanted = policy.nodes
    missing = wanted - alive - record.outstanding
    if missing > 0:
        record.outstanding += missing
        avoid = tuple(sorted(record.excluded))
        turn.emit(fx.Acquire, f"{missing} of {wanted} nodes are missing", count=missing, avoid=avoid)
        turn.set_deadline("acquired", policy.startup_s)


def launch(turn: Turn, nodes: tuple[str, ...]) -> None:
    """Begin the next attempt from the newest trusted state on the lineage."""
    record, incident = turn.record, turn.record.incident
    resume, tier = restore_point(turn, nodes)
    settle(turn, incident)
    apply_waiting(turn)
    begin_attempt(turn, resume)
    warm = set(nodes) <= set(record.assignment)
    if len(nodes) != len(record.assignment):
        turn.live.speed = pace_detector()
    record.assignment, record.ranks = nodes, len(nodes) * turn.policy.ranks_per_node
    record.tier = tier
    record.stage, record.plan = Stage.LAUNCHING, None
    record.waiting_since, record.refusals = 0.0, 0
    cause, node = (incident.cause, incident.node) if incident else ("", "")
    phase = GoodputPhase.RECOVERY if incident else GoodputPhase.STARTUP
    record.ledger.switch(phase, turn.now, cause=cause, node=node)
    _price_lost_work(turn, resume.step if resume else 0)
    _forget_attempt(turn, resume.step if resume else 0)
    turn.clear_deadline("shrink", "grow", "hang", "flap", "evidence", "kill", "save", "leaving")
    turn.set_deadline("startup", _startup_bound_s(turn, resumes=resume is not None, tier=tier, warm=warm))
    where = " in memory" if tier == "memory" else ""
    origin = f"from step {resume.step} of attempt {resume.attempt}{where}" if resume else "from scratch"
    cadence = measured(turn) if turn.policy.auto_cadence else None
    turn.emit(
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
    replenish(turn)


def _startup_bound_s(turn: Turn, *, resumes: bool, tier: str, warm: bool) -> float:
    """What was learnt counts for launches like those before: on nodes that have run the job already."""
    limit_s = turn.policy.startup_s
    return turn.record.clock.launch_bound_s(tier, limit_s) if resumes and warm else limit_s


def _price_lost_work(turn: Turn, step: int) -> None:
    """Productive time spent after `step`, which comes next again, was lost.

    A script that resumes from checkpoints of its own shows only by its first step how far it fell back.
    """
    ledger = turn.record.ledger
    if step == 0 and not turn.policy.reports_steps:
        for at, productive in turn.live.pace[:: max(1, len(turn.live.pace) // _PACE_MARKS)]:
            ledger.mark_step(at, productive)
        turn.live.unpriced = bool(turn.live.pace)
        return
    reached = next((productive for at, productive in turn.live.pace if at >= step), None)
    if step > max(ledger.marks, default=0) and reached is not None:
        ledger.mark_step(step, reached)
    ledger.lose_work_after(step)


def _forget_attempt(turn: Turn, step: int) -> None:
    live, record = turn.live, turn.record
    live.nodes = {
        name: node
        for name, node in live.nodes.items()
        if node.status is not NodeStatus.GONE
        or turn.now - node.heard_until < _GONE_KEPT_S
        or name in record.excluded
    }
    live.milestones, live.exits, live.stall_s, live.snapshot_s = Milestones(), {}, 0.0, 0.0
    live.phases, live.pace = PhaseBoard(), []
    live.stragglers, live.probes = None, {}
    live.numerics.step, live.numerics.good_step = step, step
    live.numerics.kind, live.numerics.count = "", 0
    live.step, live.phase = step, "startup"
    live.progress_at, live.quiet_until = turn.now, 0.0


def stop(turn: Turn, plan: Plan) -> None:
    """Kill the ranks of the current attempt; `plan` follows when they are reaped."""
    record = turn.record
    record.plan = plan
    record.stage = Stage.STOPPING
    turn.clear_deadline("startup", "hang", "flap", "evidence", "save", "leaving", "grow")
    turn.drop_pending(fx.Launch, fx.CollectEvidence, fx.SaveNow)
    nodes = tuple(n for n in record.assignment if _is_reachable(turn, n))
    turn.emit(fx.Kill, plan.reason, attempt=record.attempt, nodes=nodes, deadline_s=turn.policy.kill_s)
    turn.set_deadline("kill", turn.policy.kill_s + _KILL_SLACK_S)


def _is_reachable(turn: Turn, name: str) -> bool:
    node = turn.live.nodes.get(name)
    return node is not None and node.status is not NodeStatus.GONE


def nobody_left_to_stop(turn: Turn) -> bool:
    """Every node that a Kill would still wait for is gone."""
    return turn.record.stage is Stage.STOPPING and not any(
        _is_reachable(turn, name) for name in turn.record.assignment
    )


def stopped(turn: Turn) -> None:
    """Every rank that can be reaped is: go on with the plan."""
    record, incident = turn.record, turn.record.incident
    plan = record.plan or Plan("relaunch", "")
    record.stage = Stage.ASSEMBLING
    turn.clear_deadline("kill")
    turn.drop_pending(fx.Kill)
    if incident:
        incident.mark("stopped", turn.now)
    release_unwanted(turn)
    if incident and incident.action == "restart_container":
        _restart_container(turn, incident.node, incident.reason)
    if plan.then == "relaunch" and nodecheck.begin(turn, incident):
        return
    if plan.then == "relaunch":
        assemble(turn)
    elif plan.then == "suspend":
        suspend(turn, plan.reason)
    else:
        finish(turn, plan.state, plan.reason)


def _restart_container(turn: Turn, name: str, reason: str) -> None:
    """Its agent comes back under a new incarnation; until then nothing is known of the node."""
    node = turn.live.nodes.get(name)
    if node is None or node.status is NodeStatus.GONE or turn.is_excluded(name):
        return
    node.status, node.incarnation = NodeStatus.UNKNOWN, _RESTARTING
    node.heard_until = turn.now + turn.policy.startup_s
    forget(turn, name)
    turn.emit(fx.RestartSlot, reason, node=name)


def suspend(turn: Turn, reason: str) -> None:
    """Hold no ranks until resumed."""
    record = turn.record
    record.stage, record.plan = Stage.SUSPENDED, None
    record.suspended_by_spec = turn.policy.suspend
    record.ledger.switch(GoodputPhase.SUSPENDED, turn.now)
    nodecheck.end(turn)
    turn.clear_deadline("shrink", "acquireRetry", "acquired", "applySpec")
    turn.drop_pending(fx.Acquire)
    record.outstanding, record.waiting_since, record.refusals = 0, 0.0, 0
    close_incident(turn, f"suspended: {reason}")


def finish(turn: Turn, state: str, reason: str) -> None:
    """The job ended; every node goes back."""
    record = turn.record
    record.stage, record.plan = Stage.FINISHED, None
    record.finish_state, record.finish_reason = state, reason
    record.assignment = record.spares = ()
    record.lost, record.draining = {}, {}
    record.waiting_since = 0.0
    record.ledger.switch(GoodputPhase.SUSPENDED, turn.now)
    record.deadlines.clear()
    record.pending.clear()
    close_incident(turn, f"job {state}")
    turn.emit(fx.Finish, reason, state=state)


def reopen(turn: Turn) -> None:
    """An ended job is started again: it goes on from its newest commit, with fresh budgets and trust.

    Whoever reopens it has dealt with the cause; a checkpoint that is damaged all the same is found again.
    """
    record = turn.record
    record.distrusted, record.tainted = [], {}
    record.finish_state = record.finish_reason = ""
    record.restarts, record.outstanding, record.refusals = {}, 0, 0
    record.failures_in_row = record.failures_at_step = 0
    record.spec = replace(record.spec, waiting="")
    assemble(turn)
