"""From a fault to what is done about it: budgets, blame, exclusions, and the plan after the stop."""

from __future__ import annotations

from megascale.core.act.lifecycle import assemble, finish, stop
from megascale.core.contract import effects as fx
from megascale.core.decide.attribution import explained
from megascale.core.decide.blame import add_blame, exclude, lemon_reason, take_back_blame
from megascale.core.decide.breakers import note_failure, take_back_failure
from megascale.core.decide.ladder import FREE_OF_BUDGET, Decision, decide
from megascale.core.decide.restore import roll_back
from megascale.core.decide.specs import revert
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault, open_incident, relabel
from megascale.core.state.record import Incident, Plan, Stage


def respond(turn: Turn, fault: Fault) -> None:
    """Open an incident for `fault`, choose a rung and act."""
    fault = explained(turn, fault)
    incident = open_incident(turn, fault)
    decision = decide(turn, fault)
    note_decision(turn, incident, decision)
    leaving = turn.record.plan if turn.record.stage is Stage.SAVING else None
    plan = charge(turn, fault, incident, decision)
    stop(turn, leaving if leaving and leaving.asked_for else plan)


def note_decision(turn: Turn, incident: Incident, decision: Decision) -> None:
    """Write into the incident what was decided, when and why."""
    incident.action, incident.decision = decision.action, decision.reason
    incident.mark("decided", turn.now)


def charge(turn: Turn, fault: Fault, incident: Incident, decision: Decision) -> Plan:
    """Book the decision on budgets, blame and exclusions; what to do once the ranks are stopped."""
    if decision.action == "fail_job":
        reason = f"{incident.reason}; {decision.reason}"
        turn.emit(fx.Page, f"job fails: {reason}", incident=incident.id)
        return Plan("finish", reason, "failed")
    lemon = fault.blames_node and bool(lemon_reason(turn, fault.node))
    if fault.cause not in FREE_OF_BUDGET:
        note_failure(turn, fault)
        if fault.blames_node and not fault.node_gone:
            add_blame(turn, fault.node, fault.cause)
    if decision.action == "replace_node" and fault.node and not fault.node_gone and fault.cause != "planned":
        out = exclude(turn, fault.node, incident, forced=fault.cause == "manual", retired=lemon)
        if not out:
            incident.action = "restart_in_place"
            incident.decision += "; but it cannot be replaced now, so it is tried once more"
    elif decision.action == "restart_container":
        turn.record.container_restarts = {fault.node: turn.now} | {
            node: at
            for node, at in turn.record.container_restarts.items()
            if turn.now - at < turn.policy.container_restart_s
        }
    elif decision.action == "roll_back":
        roll_back(turn, incident, fault.commits)
    elif decision.action == "revert_spec":
        revert(turn, incident)
    return Plan("relaunch", f"{incident.id}: {incident.reason}")


def reattribute(turn: Turn, fault: Fault) -> None:
    """The open incident is explained by `fault`: move its charges and decide again.

    A launch under way is taken back: the decision it follows from no longer holds.
    """
    record, incident = turn.record, turn.record.incident
    if incident is None:
        return
    if incident.cause not in FREE_OF_BUDGET:
        take_back_failure(turn, incident.cause)
    if not incident.consequence:
        take_back_blame(turn, incident.node, incident.cause, incident.stages["decided"].at)
    relabel(incident, fault)
    decision = decide(turn, fault)
    note_decision(turn, incident, decision)
    plan = charge(turn, fault, incident, decision)
    if record.stage is Stage.STOPPING:
        if not (record.plan and record.plan.asked_for):
            record.plan = plan
    elif record.stage is Stage.LAUNCHING or (plan.then == "finish" and turn.ranks_active()):
        stop(turn, plan)
    elif plan.then == "finish":
        finish(turn, plan.state, plan.reason)
    elif record.stage is Stage.ASSEMBLING:
        assemble(turn)
