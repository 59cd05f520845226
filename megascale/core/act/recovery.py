"""Responds to a fault: opens the incident, decides, and books budgets, blame and exclusions."""

from __future__ import annotations

from megascale.core.act.budgets import note_failure, note_row, take_back_failure
from megascale.core.act.exclusion import add_blame, exclude, take_back_blame
from megascale.core.act.lifecycle import assemble, finish, stop
from megascale.core.act.lineage import roll_back
from megascale.core.act.specs import revert
from megascale.core.contract import effects as fx
from megascale.core.contract.vocabulary import Action, Cause, FinishState, Milestone, PlanKind, Timer
from megascale.core.decide.attribution import explained
from megascale.core.decide.backoff import backoff_s
from megascale.core.decide.blame import lemon_reason
from megascale.core.decide.ladder import FREE_OF_BUDGET, Decision, decide
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, open_incident, relabel
from megascale.core.state.record import Incident, JobState, Plan


def respond(ctx: StepContext, fault: Fault) -> None:
    """Open an incident for `fault`, decide on an action, and stop the ranks."""
    fault = explained(ctx, fault)
    incident = open_incident(ctx, fault)
    decision = decide(ctx, fault)
    note_decision(ctx, incident, decision)
    leaving = ctx.record.plan if ctx.record.state is JobState.SAVING else None
    plan = charge(ctx, fault, incident, decision)
    stop(ctx, leaving if leaving and leaving.asked_for else plan)


def note_decision(ctx: StepContext, incident: Incident, decision: Decision) -> None:
    """Note in the incident what was decided, when and why."""
    incident.action, incident.decision = decision.action, decision.reason
    incident.mark(Milestone.DECIDED, ctx.now)


def charge(ctx: StepContext, fault: Fault, incident: Incident, decision: Decision) -> Plan:
    """Book the decision on budgets, blame and exclusions; returns the plan for when the ranks are stopped."""
    if decision.action == Action.FAIL_JOB:
        reason = f"{incident.reason}; {decision.reason}"
        ctx.emit(fx.Page, f"job fails: {reason}", incident=incident.id)
        return Plan(PlanKind.FINISH, reason, FinishState.FAILED)
    node = fault.node
    lemon = node is not None and fault.blames_node and lemon_reason(ctx, node) is not None
    if fault.cause == Cause.PLANNED and fault.rank is not None:
        note_row(ctx, may_repeat=True)
    elif fault.cause not in FREE_OF_BUDGET:
        note_failure(ctx, fault)
        if node is not None and fault.blames_node and not fault.node_gone:
            add_blame(ctx, node, fault.cause, incident)
    if (
        decision.action == Action.REPLACE_NODE
        and node
        and not fault.node_gone
        and fault.cause != Cause.PLANNED
    ):
        out = exclude(ctx, node, incident, forced=fault.cause == Cause.MANUAL, retired=lemon)
        if not out:
            incident.action = Action.RESTART_IN_PLACE
            incident.decision += "; but it cannot be replaced now, so it is tried once more"
    elif decision.action == Action.RESTART_CONTAINER and node:
        ctx.record.container_restarts = {node: ctx.now} | {
            name: at
            for name, at in ctx.record.container_restarts.items()
            if ctx.now - at < ctx.policy.container_restart_s
        }
    elif decision.action == Action.ROLL_BACK:
        roll_back(ctx, incident, fault.commits)
    elif decision.action == Action.REVERT_SPEC:
        revert(ctx, incident)
    _back_off(ctx, incident)
    return Plan(PlanKind.RELAUNCH, f"{incident.id}: {incident.reason}")


def _back_off(ctx: StepContext, incident: Incident) -> None:
    """Hold the relaunch off if it follows others without progress between them."""
    ctx.clear_deadline(Timer.BACKOFF)
    if incident.action is None:
        return
    wait_s = backoff_s(ctx, incident.cause, incident.action)
    if wait_s > 0:
        ctx.set_deadline(Timer.BACKOFF, wait_s)
        incident.decision += f"; after a back-off of {wait_s:.1f} s"


def reattribute(ctx: StepContext, fault: Fault) -> None:
    """The open incident is explained by `fault`: undo its charges, decide again and charge the new cause.

    A launch that is under way is stopped, since the decision behind it no longer holds.
    """
    record, incident = ctx.record, ctx.record.incident
    if incident is None:
        return
    if incident.cause not in FREE_OF_BUDGET:
        take_back_failure(ctx, incident.cause)
    take_back_blame(ctx, incident)
    relabel(incident, fault)
    decision = decide(ctx, fault)
    note_decision(ctx, incident, decision)
    plan = charge(ctx, fault, incident, decision)
    if record.state is JobState.STOPPING:
        if not (record.plan and record.plan.asked_for):
            record.plan = plan
    elif record.state is JobState.LAUNCHING or (plan.state is not None and ctx.ranks_active()):
        stop(ctx, plan)
    elif plan.state is not None:
        finish(ctx, plan.state, plan.reason)
    elif record.state is JobState.ASSEMBLING:
        assemble(ctx)
