"""Replacing a node that still works: save first, then go on without it."""

from __future__ import annotations

from megascale.core.act.graceful_stop import save_and_stop
from megascale.core.act.recovery import charge, note_decision
from megascale.core.contract.vocabulary import Action
from megascale.core.decide.ladder import Decision
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, open_incident


def swap_out(ctx: StepContext, fault: Fault, why: str) -> None:
    """Save, leave, and launch again on other nodes."""
    incident = open_incident(ctx, fault)
    decision = Decision(Action.REPLACE_NODE, why)
    note_decision(ctx, incident, decision)
    save_and_stop(ctx, charge(ctx, fault, incident, decision))


def idle_nodes(ctx: StepContext) -> list[str]:
    """Usable nodes that hold no ranks."""
    held = set(ctx.record.assignment)
    return [node for node in ctx.usable() if node not in held]
