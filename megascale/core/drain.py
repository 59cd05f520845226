"""Notices that a node will go away: save now, swap it for a spare, charge no budget and no blame (design 3)."""

from __future__ import annotations

from megascale.core.blame import release_unwanted
from megascale.core.incidents import Fault, open_incident
from megascale.core.leaving import leave, save
from megascale.core.lifecycle import replenish
from megascale.core.state import Plan, Stage
from megascale.core.turn import Turn


def on_notice(turn: Turn, node: str, reason: str) -> None:
    """The node will be drained or preempted. A repeated notice changes nothing."""
    record = turn.record
    if node not in turn.live.nodes or node in record.draining:
        return
    record.draining[node] = reason
    release_unwanted(turn)
    if record.stage is Stage.RUNNING and turn.holds_ranks(node) and not turn.usable():
        save(turn, f"{node} will go away and no spare is there yet: {reason}", leaving=False)
    replenish(turn)
    swap_if_possible(turn)


def swap_if_possible(turn: Turn) -> None:
    """Save, leave and go on without the draining nodes, once there are others for all of them."""
    record = turn.record
    leaving = [node for node in record.assignment if node in record.draining]
    if record.stage is not Stage.RUNNING or not leaving:
        return
    spares = [node for node in turn.usable() if node not in record.assignment]
    if len(spares) < len(leaving):
        return
    reason = f"{', '.join(leaving)} will go away: {record.draining[leaving[0]]}"
    incident = open_incident(turn, Fault("planned", reason, node=leaving[0], at=turn.now))
    incident.action, incident.decision = "replace_node", "a spare takes over after a save; no budget, no blame"
    incident.mark("decided", turn.now)
    leave(turn, Plan("relaunch", f"{incident.id}: {reason}"))
