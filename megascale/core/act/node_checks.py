"""Wrong numbers: which node computes them, asked of every node while no ranks run (arXiv 2509.16293).

ByteRobust checks machines at the stop after a NaN; a test that compares bit for bit convicts about 70% of
those that corrupt data silently, and no sound one. What it does not find, a roll-back or a replay has to.
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
    """Ask every node that took part in wrong numbers; `assemble` waits until they have answered.

    False = there is nothing to check.
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
    """The check is over, or was called off."""
    ctx.clear_deadline(Timer.CHECK)
    ctx.drop_pending(fx.CheckNodes)
