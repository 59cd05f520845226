"""Which snapshots the nodes hold in memory, and which of them the next attempt can resume from.

Ranks may be a step apart when they are killed; each keeps its two newest snapshots, so they have one in
common. Each rank reads only its own: every node must hold the same snapshot and keep its place.
"""

from __future__ import annotations

from typing import Final

from megascale.core.contract.events import SnapshotReady
from megascale.core.contract.lineage import Commit, is_on_lineage
from megascale.core.state.context import StepContext

_KEPT: Final = 2


def on_ready(ctx: StepContext, event: SnapshotReady) -> None:
    """Remember the newest snapshots of the node; they were overwritten in this order, too."""
    known = {*ctx.live.snapshots.get(event.node, ()), Commit(event.step, event.attempt)}
    newest = sorted(known, key=lambda snapshot: (snapshot.attempt, snapshot.step))[-_KEPT:]
    ctx.live.snapshots[event.node] = tuple(newest)


def in_common(ctx: StepContext, nodes: tuple[str, ...]) -> set[Commit]:
    """Snapshots on the lineage that ranks on `nodes` can go on from; none unless all keep their place."""
    record, policy = ctx.record, ctx.policy
    same_ranks = nodes == record.assignment and record.ranks == len(nodes) * policy.ranks_per_node
    if not policy.memory_snapshots or not same_ranks or record.spec.waiting:
        return set()
    common = set.intersection(*(set(ctx.live.snapshots.get(node, ())) for node in nodes))
    return {
        snapshot
        for snapshot in common
        if snapshot.attempt >= record.memory_from and is_on_lineage(snapshot, record.lineage, record.attempt)
    }


def forget(ctx: StepContext, node: str) -> None:
    """The node is lost, or starts anew: an agent that finds snapshots there says so itself."""
    ctx.live.snapshots.pop(node, None)
