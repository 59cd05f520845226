"""A node will go away: save now, swap it for a spare, charge no budget and no blame (design 3)."""

from __future__ import annotations

from megascale.core.act.graceful_stop import save
from megascale.core.act.lifecycle import replenish
from megascale.core.act.swap import idle_nodes, swap_out
from megascale.core.decide.blame import release_unwanted
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault
from megascale.core.state.record import Stage


def on_notice(turn: Turn, node: str, reason: str) -> None:
    """The node will be drained or preempted. A repeated notice changes nothing."""
    record = turn.record
    if node not in turn.live.nodes or node in record.draining:
        return
    record.draining[node] = reason
    release_unwanted(turn)
    replenish(turn)
    swap_if_possible(turn)
    if record.stage is Stage.RUNNING and turn.holds_ranks(node):
        save(turn, f"{node} will go away and no spare is there yet: {reason}", leaving=False)


def swap_if_possible(turn: Turn) -> None:
    """Save, leave and go on without the draining nodes, once there are others for all of them."""
    record = turn.record
    leaving = [node for node in record.assignment if node in record.draining]
    if record.stage is not Stage.RUNNING or not leaving or len(idle_nodes(turn)) < len(leaving):
        return
    reason = f"{', '.join(leaving)} will go away: {record.draining[leaving[0]]}"
    fault = Fault("planned", reason, node=leaving[0], at=turn.now)
    swap_out(turn, fault, "a spare takes over after a save; no budget charged, no blame")
