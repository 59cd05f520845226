"""A shrunk job goes back to full size some time after its nodes are back."""

from __future__ import annotations

from megascale.core.act.graceful_stop import leave
from megascale.core.state.context import Turn
from megascale.core.state.record import Plan, Stage


def look_for_nodes(turn: Turn) -> None:
    """Start waiting when there are enough nodes again."""
    record, policy = turn.record, turn.policy
    shrunk = record.stage is Stage.RUNNING and len(record.assignment) < policy.nodes
    if shrunk and "grow" not in record.deadlines and len(turn.usable()) >= policy.nodes:
        turn.set_deadline("grow", policy.grow_after_s)


def on_due(turn: Turn) -> None:
    """They are still there: save, and go on with all of them."""
    if turn.record.stage is Stage.RUNNING and len(turn.usable()) >= turn.policy.nodes:
        leave(turn, Plan("relaunch", f"{turn.policy.nodes} nodes are there again"))
