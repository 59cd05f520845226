"""Starts and ends the check of all nodes after wrong numbers, while no ranks run.

ByteRobust (arXiv 2509.16293) checks machines at the stop after a NaN. A test that compares bit for bit finds
about 70% of the nodes that corrupt data silently, and accuses no sound one; the others need a roll-back or a
replay.
"""

from __future__ import annotations

from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.contract.vocabulary import Cause, Timer
from megascale.core.state.context import StepContext
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.record import Incident, NodeStatus

CHECK_S: Final = 300.0
"""Nodes that have not answered a check after this time count as unknown."""


def begin(ctx: StepContext, incident: Incident | None) -> bool:
    """Check every node of an attempt that had wrong numbers; `assemble` waits until they have answered.

    Returns False when there is nothing to check.
    """
    if not ctx.policy.check_numbers or incident is None or incident.cause != Cause.NUMERICS:
        return False
    nodes = tuple(
        name
        for name in ctx.record.assignment
        if (node := ctx.live.nodes.get(name)) is not None and node.status is not NodeStatus.GONE
    )
    if not nodes:
        return False
    ctx.record.ledger.switch(GoodputPhase.DIAGNOSIS, ctx.now, cause=incident.cause)
    ctx.emit(fx.CheckNodes, incident.reason, nodes=nodes, deadline_s=CHECK_S)
    ctx.set_deadline(Timer.CHECK, CHECK_S)
    return True


def is_under_way(ctx: StepContext) -> bool:
    return Timer.CHECK in ctx.record.deadlines


def end(ctx: StepContext) -> None:
    """End the check, answered or not."""
    ctx.clear_deadline(Timer.CHECK)
    ctx.drop_pending(fx.CheckNodes)
