"""A node will go away: save now, swap it for a spare, charge no budget and no blame (design 3)."""

from __future__ import annotations

from megascale.core.act.graceful_stop import save
from megascale.core.act.lifecycle import replenish
from megascale.core.act.swap import idle_nodes, swap_out
from megascale.core.contract.vocabulary import Cause
from megascale.core.decide.blame import release_unwanted
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault
from megascale.core.state.record import JobState


def on_notice(ctx: StepContext, node: str, reason: str) -> None:
    """The node will be drained or preempted. A repeated notice changes nothing."""
    record = ctx.record
    if node not in ctx.live.nodes or node in record.draining:
        return
    record.draining[node] = reason
    release_unwanted(ctx)
    replenish(ctx)
    swap_if_possible(ctx)
    if record.state is JobState.RUNNING and ctx.holds_ranks(node):
        save(ctx, f"{node} will go away and no spare is there yet: {reason}", then_stop=False)


def swap_if_possible(ctx: StepContext) -> None:
    """Save, leave and go on without the draining nodes, once there are others for all of them."""
    record = ctx.record
    leaving = [node for node in record.assignment if node in record.draining]
    if record.state is not JobState.RUNNING or not leaving or len(idle_nodes(ctx)) < len(leaving):
        return
    reason = f"{', '.join(leaving)} will go away: {record.draining[leaving[0]]}"
    fault = Fault(Cause.PLANNED, reason, node=leaving[0], at=ctx.now)
    swap_out(ctx, fault, "a spare takes over after a save; no budget charged, no blame")
