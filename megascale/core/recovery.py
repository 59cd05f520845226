"""The recovery ladder: which rung a fault calls for, by budgets and blame (design 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from megascale.core import effects as fx
from megascale.core.goodput import GoodputPhase
from megascale.core.lifecycle import close_incident, release_excluded, stop
from megascale.core.state import INCIDENTS_KEPT, Blame, Exclusion, Incident, Plan, Stage, StageTime
from megascale.core.turn import Turn

HOUR_S: Final = 3600.0
_FREE_OF_BUDGET: Final = frozenset({"manual", "planned"})
_BLAME: Final = {"crash": 1.0, "hang": 1.0, "node_lost": 1.0, "hardware": 3.0, "launch_failed": 1.0}


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, before anything is decided.

    Attributes:
        at: when it happened; `source` says how that is known: observed, estimated or injected.
        node_gone: the node cannot be used any more, whatever is decided.
        consequence: may well be an echo of another rank's fault (a broken collective).
    """

    cause: str
    reason: str
    node: str = ""
    rank: int | None = None
    at: float = 0.0
    source: str = "observed"
    node_gone: bool = False
    consequence: bool = False
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """A rung of the ladder and why it was chosen."""

    action: str
    reason: str


def respond(turn: Turn, fault: Fault) -> None:
    """Open an incident for `fault`, choose a rung and act."""
    incident = open_incident(turn, fault)
    decision = decide(turn, fault)
    incident.action, incident.decision = decision.action, decision.reason
    incident.mark("decided", turn.now)
    act(turn, fault, incident, decision)


def open_incident(turn: Turn, fault: Fault) -> Incident:
    """A new incident; one that is still open was interrupted by it."""
    record, live = turn.record, turn.live
    close_incident(turn, f"interrupted by i-{record.next_incident}")
    incident = Incident(
        id=f"i-{record.next_incident}",
        cause=fault.cause,
        reason=fault.reason,
        node=fault.node,
        rank=fault.rank,
        attempt=record.attempt,
        fault_step=live.step,
        consequence=fault.consequence,
    )
    record.next_incident += 1
    incident.mark("fault", min(fault.at or turn.now, turn.now), fault.source)
    incident.mark("detected", turn.now)
    for line in fault.evidence:
        incident.add_evidence(line)
    record.incident = incident
    del record.incidents[:-INCIDENTS_KEPT]
    _charge_detection(turn, incident)
    return incident


def _charge_detection(turn: Turn, incident: Incident) -> None:
    ledger = turn.record.ledger
    ledger.charge(turn.now)
    unseen_s = turn.now - incident.stages["fault"].at
    if ledger.phase is GoodputPhase.PRODUCTIVE:
        ledger.cause, ledger.node = incident.cause, incident.node
        ledger.move(GoodputPhase.PRODUCTIVE, GoodputPhase.DETECTION, unseen_s)
    ledger.switch(GoodputPhase.RECOVERY, turn.now, cause=incident.cause, node=incident.node)


def decide(turn: Turn, fault: Fault) -> Decision:
    """The cheapest rung that can cure `fault` and has budget left."""
    if fault.cause in _FREE_OF_BUDGET:
        return Decision("replace_node", f"{fault.reason}; no budget charged, no blame")
    spent = _spent_budget(turn, fault)
    if spent:
        return Decision("fail_job", spent)
    if fault.cause == "checkpoint_corrupt":
        return Decision(
            "roll_back", "the damaged checkpoint is not used again; the one before it is restored"
        )
    if fault.node_gone:
        return Decision("replace_node", "the node is gone; a spare takes its ranks, else a new node")
    if (
        fault.node
        and blame_of(turn, fault.node) + _BLAME.get(fault.cause, 0.0) > turn.policy.node_blame_limit
    ):
        return Decision(
            "replace_node", f"{fault.node} failed repeatedly; a restart is not trusted to cure it"
        )
    return Decision("restart_in_place", "restarting the processes on the same nodes is the cheapest cure")


def _spent_budget(turn: Turn, fault: Fault) -> str:
    """Which bound forbids another restart, "" if none does."""
    record, policy = turn.record, turn.policy
    if sum(record.restarts.values()) >= policy.max_restarts:
        return f"all {policy.max_restarts} restarts of recovery.maxRestarts are used"
    used, budget = record.restarts.get(fault.cause, 0), policy.budgets.get(fault.cause)
    if budget is not None and used >= budget:
        return f"all {budget} restarts of recovery.budgets.{fault.cause} are used"
    if record.failures_in_row >= policy.no_progress_limit:
        step = record.best_step + 1
        return f"{record.failures_in_row} restarts in a row failed before step {step} was completed"
    return ""


def act(turn: Turn, fault: Fault, incident: Incident, decision: Decision) -> None:
    """Charge budgets and blame, exclude what must be excluded, and stop the ranks."""
    leaving = turn.record.plan if turn.record.stage is Stage.SAVING else None
    plan = charge(turn, fault, incident, decision)
    stop(turn, leaving if leaving and leaving.then != "relaunch" else plan)


def charge(turn: Turn, fault: Fault, incident: Incident, decision: Decision) -> Plan:
    """Book the decision on budgets, blame and exclusions; what to do once the ranks are stopped."""
    record = turn.record
    if decision.action == "fail_job":
        reason = f"{incident.reason}; {decision.reason}"
        turn.emit(fx.Page, f"job fails: {reason}", incident=incident.id)
        return Plan("finish", reason, "failed")
    if fault.cause not in _FREE_OF_BUDGET:
        record.restarts[fault.cause] = record.restarts.get(fault.cause, 0) + 1
        record.failures_in_row += 1
        add_blame(turn, fault.node, _BLAME.get(fault.cause, 0.0))
    if decision.action == "replace_node" and fault.node and fault.cause != "planned":
        exclude(turn, fault.node, incident, forced=fault.cause == "manual")
    return Plan("relaunch", f"{incident.id}: {incident.reason}")


def reattribute(turn: Turn, fault: Fault) -> None:
    """The open incident was an echo of `fault`: move its charges and decide again, while still stopping."""
    record, incident = turn.record, turn.record.incident
    if incident is None:
        return
    record.restarts[incident.cause] = max(0, record.restarts.get(incident.cause, 0) - 1)
    record.failures_in_row = max(0, record.failures_in_row - 1)
    add_blame(turn, incident.node, -_BLAME.get(incident.cause, 0.0))
    incident.add_evidence(f"first seen as: {incident.reason}")
    incident.cause, incident.reason, incident.consequence = fault.cause, fault.reason, False
    incident.node, incident.rank = fault.node, fault.rank
    if fault.at:
        incident.stages["fault"] = StageTime(fault.at, fault.source)
    for line in fault.evidence:
        incident.add_evidence(line)
    decision = decide(turn, fault)
    incident.action, incident.decision = decision.action, decision.reason
    record.plan = charge(turn, fault, incident, decision)


def blame_of(turn: Turn, node: str) -> float:
    """Blame of a node now, after decay."""
    blame = turn.record.blame.get(node)
    if blame is None:
        return 0.0
    return blame.score * math.pow(0.5, (turn.now - blame.at) / turn.policy.blame_half_life_s)


def add_blame(turn: Turn, node: str, score: float) -> None:
    if node and score:
        turn.record.blame[node] = Blame(max(0.0, blame_of(turn, node) + score), turn.now)


def exclude(turn: Turn, node: str, incident: Incident, *, forced: bool = False) -> None:
    """Take the node out of this job, unless the hourly bound is reached: then page instead."""
    record = turn.record
    if node in record.excluded:
        return
    record.exclusion_times = [t for t in record.exclusion_times if t > turn.now - HOUR_S]
    if len(record.exclusion_times) >= turn.policy.max_nodes_per_hour and not forced:
        bound = turn.policy.max_nodes_per_hour
        reason = f"{node} is not excluded: remediation.maxNodesPerHour = {bound} is reached"
        incident.add_evidence(reason)
        turn.emit(fx.Page, reason, incident=incident.id)
        return
    record.exclusion_times.append(turn.now)
    record.excluded[node] = Exclusion(incident.reason, incident.id, turn.now)
    turn.emit(fx.Exclude, incident.reason, node=node, incident=incident.id)
    if turn.policy.quarantine:
        turn.emit(fx.RequestQuarantine, incident.reason, node=node, incident=incident.id)
    if node not in record.assignment:
        release_excluded(turn)
