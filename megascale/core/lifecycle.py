"""From nodes to ranks and back: assemble, launch, stop, suspend, finish."""

from __future__ import annotations

from megascale.core import effects as fx
from megascale.core.goodput import GoodputPhase
from megascale.core.lineage import Commit, newest
from megascale.core.state import LINEAGE_KEPT, Incident, Milestones, NodeStatus, Plan, Stage
from megascale.core.turn import Turn


def assemble(turn: Turn) -> None:
    """Launch when enough nodes are usable; otherwise ask for what is missing and wait."""
    record = turn.record
    record.stage = Stage.ASSEMBLING
    if turn.policy.suspend:
        suspend(turn, "spec.suspend is set")
        return
    nodes = choose_nodes(turn, turn.policy.nodes)
    if nodes is None and _may_shrink(turn):
        nodes = _shrunk(turn)
    if nodes is not None:
        launch(turn, nodes)
        return
    cause = record.incident.cause if record.incident else ""
    phase = GoodputPhase.WAITING_FOR_NODES
    if record.ledger.phase is not phase:
        record.ledger.switch(phase, turn.now, cause=cause)
    if "shrink" not in record.deadlines and turn.policy.min_nodes < turn.policy.nodes:
        turn.set_deadline("shrink", turn.policy.shrink_after_s)
    replenish(turn)


def choose_nodes(turn: Turn, count: int) -> tuple[str, ...] | None:
    """`count` usable nodes in rank order: survivors keep their place, spares fill the holes."""
    usable = turn.usable()
    if len(usable) < count:
        return None
    kept = [node if node in usable else None for node in turn.record.assignment[:count]]
    kept += [None] * (count - len(kept))
    idle = iter([node for node in usable if node not in kept])
    return tuple(node if node is not None else next(idle) for node in kept)


def _may_shrink(turn: Turn) -> bool:
    deadline = turn.record.deadlines.get("shrink")
    return deadline is not None and turn.now >= deadline


def _shrunk(turn: Turn) -> tuple[str, ...] | None:
    """The largest allowed layout that the usable nodes can fill, never below `min_nodes`."""
    available = len(turn.usable())
    for count in sorted(turn.policy.node_counts, reverse=True):
        if turn.policy.min_nodes <= count <= available:
            incident = turn.record.incident
            if incident:
                incident.action = "shrink"
                incident.decision += (
                    f"; no spare came in {turn.policy.shrink_after_s:g} s, going on with {count} nodes"
                )
            return choose_nodes(turn, count)
    return None


def replenish(turn: Turn) -> None:
    """Ask the fleet for the nodes missing from training and spares."""
    record = turn.record
    if "acquireRetry" in record.deadlines or record.stage in (Stage.SUSPENDED, Stage.FINISHED):
        return
    alive = sum(
        1
        for name, node in turn.live.nodes.items()
        if node.status is not NodeStatus.GONE and not turn.is_excluded(name)
    )
    wanted = turn.policy.nodes + turn.policy.spare_nodes
    if turn.policy.spares_after_launch and record.attempt == 0:
        wanted = turn.policy.nodes
    missing = wanted - alive - record.outstanding
    if missing > 0:
        record.outstanding += missing
        avoid = tuple(sorted(record.excluded))
        turn.emit(fx.Acquire, f"{missing} of {wanted} nodes are missing", count=missing, avoid=avoid)
        turn.set_deadline("acquired", turn.policy.startup_s)


def launch(turn: Turn, nodes: tuple[str, ...]) -> None:
    """Begin the next attempt from the newest trusted commit on the lineage."""
    record, live = turn.record, turn.live
    resume = resume_point(turn)
    record.attempt += 1
    record.lineage[record.attempt] = resume
    record.lineage = _trimmed(record.lineage, record.attempt)
    record.assignment = nodes
    record.stage = Stage.LAUNCHING
    record.plan = None
    incident = record.incident
    cause, node = (incident.cause, incident.node) if incident else ("", "")
    phase = GoodputPhase.RECOVERY if incident else GoodputPhase.STARTUP
    record.ledger.switch(phase, turn.now, cause=cause, node=node)
    record.ledger.lose_work_after(resume.step if resume else 0)
    live.milestones, live.exits, live.stalls = Milestones(), {}, {}
    live.step = resume.step if resume else 0
    live.phase, live.progress_at, live.quiet_until = "startup", turn.now, 0.0
    turn.clear_deadline("shrink", "hang", "flap", "evidence", "kill", "save")
    turn.set_deadline("startup", turn.policy.startup_s)
    origin = f"from step {resume.step} of attempt {resume.attempt}" if resume else "from scratch"
    turn.emit(
        fx.Launch,
        f"attempt {record.attempt} on {len(nodes)} nodes, {origin}",
        attempt=record.attempt,
        nodes=nodes,
        resume=resume,
        lineage=dict(record.lineage),
    )
    replenish(turn)


def resume_point(turn: Turn) -> Commit | None:
    """What the next attempt restores: the newest commit on the lineage that was not found damaged."""
    record = turn.record
    trusted = [commit for commit in record.commits if commit not in record.distrusted]
    return newest(trusted, record.lineage, record.attempt)


def _trimmed(lineage: dict[int, Commit | None], attempt: int) -> dict[int, Commit | None]:
    """Only the ancestors of `attempt`, newest first, bounded."""
    kept: dict[int, Commit | None] = {}
    current: int | None = attempt
    while current is not None and current in lineage and len(kept) < LINEAGE_KEPT:
        parent = kept[current] = lineage[current]
        current = parent.attempt if parent else None
    return dict(sorted(kept.items()))


def stop(turn: Turn, plan: Plan) -> None:
    """Kill the ranks of the current attempt; `plan` follows when they are reaped."""
    record = turn.record
    record.plan = plan
    record.stage = Stage.STOPPING
    turn.clear_deadline("startup", "hang", "flap", "evidence", "save")
    turn.drop_pending(fx.Launch, fx.CollectEvidence, fx.SaveNow)
    nodes = tuple(n for n in record.assignment if _is_reachable(turn, n))
    turn.emit(fx.Kill, plan.reason, attempt=record.attempt, nodes=nodes, deadline_s=turn.policy.kill_s)
    turn.set_deadline("kill", turn.policy.kill_s + 5.0)


def _is_reachable(turn: Turn, name: str) -> bool:
    node = turn.live.nodes.get(name)
    return node is not None and node.status is not NodeStatus.GONE


def stopped(turn: Turn, unreaped: tuple[str, ...]) -> None:
    """Every rank that can be reaped is: go on with the plan. Stuck nodes leave (design 3)."""
    record = turn.record
    turn.clear_deadline("kill")
    turn.drop_pending(fx.Kill)
    for name in unreaped:
        node = turn.live.nodes.get(name)
        if node is not None:
            node.status = NodeStatus.GONE
            turn.emit(fx.Release, "its ranks could not be reaped: stuck in the kernel", node=name)
    if record.incident:
        record.incident.mark("stopped", turn.now)
        for name in unreaped:
            record.incident.add_evidence(
                f"{name}: ranks not reaped in {turn.policy.kill_s:g} s, node left behind"
            )
    release_excluded(turn)
    plan = record.plan or Plan("relaunch", "")
    if plan.then == "relaunch":
        assemble(turn)
    elif plan.then == "suspend":
        suspend(turn, plan.reason)
    else:
        finish(turn, plan.state, plan.reason)


def release_excluded(turn: Turn) -> None:
    """Give back excluded nodes that hold no ranks any more."""
    for name in sorted(turn.record.excluded):
        node = turn.live.nodes.get(name)
        if node is not None and node.status is not NodeStatus.GONE:
            node.status = NodeStatus.GONE
            turn.emit(fx.Release, turn.record.excluded[name].reason, node=name)


def suspend(turn: Turn, reason: str) -> None:
    """Hold no ranks until resumed."""
    record = turn.record
    record.stage = Stage.SUSPENDED
    record.plan = None
    record.ledger.switch(GoodputPhase.SUSPENDED, turn.now)
    turn.clear_deadline("shrink", "acquireRetry", "acquired")
    record.outstanding = 0
    close_incident(turn, f"suspended: {reason}")


def finish(turn: Turn, state: str, reason: str) -> None:
    """The job ended; every node goes back."""
    record = turn.record
    record.stage = Stage.FINISHED
    record.finish_state, record.finish_reason = state, reason
    record.assignment = ()
    record.ledger.switch(GoodputPhase.SUSPENDED, turn.now)
    record.deadlines.clear()
    record.pending.clear()
    close_incident(turn, f"job {state}")
    turn.emit(fx.Finish, reason, state=state)


def reopen(turn: Turn) -> None:
    """An ended job is started again: it goes on from its newest commit, with fresh budgets."""
    record = turn.record
    record.finish_state = record.finish_reason = ""
    record.restarts, record.failures_in_row, record.outstanding, record.refusals = {}, 0, 0, 0
    assemble(turn)


def close_incident(turn: Turn, outcome: str) -> None:
    """Move the open incident, if any, to the history."""
    incident: Incident | None = turn.record.incident
    if incident is None:
        return
    incident.outcome = outcome
    turn.record.incidents.append(incident)
    turn.record.incident = None
