"""Replacing a node that still works: save first, then go on without it."""

from __future__ import annotations

from megascale.core.act.graceful_stop import leave
from megascale.core.act.recovery import charge, note_decision
from megascale.core.decide.ladder import Decision
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault, open_incident


def swap_out(turn: Turn, fault: Fault, why: str) -> None:
    """Save, leave, and launch again on other nodes."""
    incident = open_incident(turn, fault)
    decision = Decision("replace_node", why)
    note_decision(turn, incident, decision)
    leave(turn, charge(turn, fault, incident, decision))


def idle_nodes(turn: Turn) -> list[str]:
    """Usable nodes that hold no ranks."""
    held = set(turn.record.assignment)
    return [node for node in turn.usable() if node not in held]
