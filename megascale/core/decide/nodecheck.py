"""Wrong numbers: which node computes them, asked of every node while no ranks run (arXiv 2509.16293).

ByteRobust checks machines at the stop after a NaN; a test that compares bit for bit convicts about 70% of
those that corrupt data silently, and no sound one. What it does not find, a roll-back or a replay has to.
"""

from __future__ import annotations

from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.state.context import Turn
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.record import Incident, NodeStatus

CHECK: Final = "check"


def begin(turn: Turn, incident: Incident | None) -> bool:
    """Ask every node that took part in wrong numbers; `assemble` waits until they have answered.

    False = there is nothing to check.
    """
    if not turn.policy.check_numbers or incident is None or incident.cause != "numerics":
        return False
    nodes = tuple(
        name
        for name in turn.record.assignment
        if (node := turn.live.nodes.get(name)) is not None and node.status is not NodeStatus.GONE
    )
    if not nodes:
        return False
    turn.record.ledger.switch(GoodputPhase.DIAGNOSIS, turn.now, cause=incident.cause)
    turn.emit(fx.CheckNodes, incident.reason, nodes=nodes, deadline_s=turn.policy.check_s)
    turn.set_deadline(CHECK, turn.policy.check_s)
    return True


def is_under_way(turn: Turn) -> bool:
    return CHECK in turn.record.deadlines


def end(turn: Turn) -> None:
    """The check is over, or was called off."""
    turn.clear_deadline(CHECK)
    turn.drop_pending(fx.CheckNodes)
