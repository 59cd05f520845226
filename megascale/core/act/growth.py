"""A shrunk job goes back to full size some time after its nodes are back."""

from __future__ import annotations

from megascale.core.act.graceful_stop import save_and_stop
from megascale.core.contract.vocabulary import PlanKind, Timer
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobState, Plan


def look_for_nodes(ctx: StepContext) -> None:
    """Start waiting when there are enough nodes again."""
    record, policy = ctx.record, ctx.policy
    shrunk = record.state is JobState.RUNNING and len(record.assignment) < policy.nodes
    if shrunk and Timer.GROW not in record.deadlines and len(ctx.usable()) >= policy.nodes:
        ctx.set_deadline(Timer.GROW, policy.grow_after_s)


def on_due(ctx: StepContext) -> None:
    """They are still there: save, and go on with all of them."""
    if ctx.record.state is JobState.RUNNING and len(ctx.usable()) >= ctx.policy.nodes:
        save_and_stop(ctx, Plan(PlanKind.RELAUNCH, f"{ctx.policy.nodes} nodes are there again"))
