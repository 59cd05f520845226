"""Changing the nodes of a job that still works: replace one, leave before a drain, grow back to full size.

Ranks save first, so that no step is lost.
"""

from __future__ import annotations

from megascale.core.act.exclusion import release_unwanted
from megascale.core.act.graceful_stop import save, save_and_stop
from megascale.core.act.lifecycle import replenish
from megascale.core.act.recovery import charge, note_decision
from megascale.core.contract.vocabulary import Action, Cause, PlanKind, Timer
from megascale.core.decide.ladder import Decision
from megascale.core.decide.placement import idle_nodes
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, open_incident
from megascale.core.state.record import TEXT_KEPT_CLOSED, JobState, Plan, shortened


def swap_out(ctx: StepContext, fault: Fault, why: str) -> None:
    """Save, stop, and launch again without the faulty node."""
    incident = open_incident(ctx, fault)
    decision = Decision(Action.REPLACE_NODE, why)
    note_decision(ctx, incident, decision)
    save_and_stop(ctx, charge(ctx, fault, incident, decision))


def on_drain_notice(ctx: StepContext, node: str, reason: str) -> None:
    """Prepare for the drain or preemption of the node: no blame, no budget. Repeated notices are ignored."""
    record = ctx.record
    if node not in ctx.live.nodes or node in record.draining:
        return
    record.draining[node] = shortened(reason, TEXT_KEPT_CLOSED)
    release_unwanted(ctx)
    replenish(ctx)
    replace_draining(ctx)
    if record.state is JobState.RUNNING and ctx.holds_ranks(node):
        save(ctx, f"{node} will go away and no spare is there yet: {reason}", then_stop=False)


def replace_draining(ctx: StepContext) -> None:
    """Save, and launch again without the draining nodes, once there are others for all of them."""
    record = ctx.record
    leaving = [node for node in record.assignment if node in record.draining]
    if record.state is not JobState.RUNNING or not leaving or len(idle_nodes(ctx)) < len(leaving):
        return
    reason = f"{', '.join(leaving)} will go away: {record.draining[leaving[0]]}"
    fault = Fault(Cause.PLANNED, reason, node=leaving[0], at=ctx.now)
    swap_out(ctx, fault, "a spare takes over after a save; no budget charged, no blame")


def grow_later(ctx: StepContext) -> None:
    """A shrunk job whose nodes are back restarts on all of them once they have stayed for a while."""
    record, policy = ctx.record, ctx.policy
    shrunk = record.state is JobState.RUNNING and len(record.assignment) < policy.nodes
    if shrunk and Timer.GROW not in record.deadlines and len(ctx.usable()) >= policy.nodes:
        ctx.set_deadline(Timer.GROW, policy.grow_after_s)


def on_grow_due(ctx: StepContext) -> None:
    """The nodes are still there: save, and go on with all of them."""
    if ctx.record.state is JobState.RUNNING and len(ctx.usable()) >= ctx.policy.nodes:
        save_and_stop(ctx, Plan(PlanKind.RELAUNCH, f"{ctx.policy.nodes} nodes are there again"))
