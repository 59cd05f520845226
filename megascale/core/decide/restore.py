"""What the next attempt restores, and which checkpoints are no longer trusted."""

from __future__ import annotations

from megascale.core.contract.lineage import Commit, is_on_lineage, newest
from megascale.core.contract.vocabulary import Tier
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobRecord


def resume_point(ctx: StepContext) -> Commit | None:
    """The newest commit on the lineage that is trusted; None = from scratch."""
    return newest_trusted(ctx.record)


def newest_trusted(record: JobRecord) -> Commit | None:
    """As `resume_point`, of a record."""
    return newest((c for c in record.commits if _is_trusted(record, c)), record.lineage, record.attempt)


def restore_point(ctx: StepContext, nodes: tuple[str, ...]) -> tuple[Commit | None, Tier]:
    """What an attempt on `nodes` restores, and from which tier: from memory only what is newer."""
    commit = resume_point(ctx)
    snapshot = max((s for s in _snapshots_in_common(ctx, nodes) if _is_trusted(ctx.record, s)), default=None)
    if snapshot is not None and (commit is None or snapshot.step > commit.step):
        return snapshot, Tier.MEMORY
    return commit, Tier.DURABLE


def _snapshots_in_common(ctx: StepContext, nodes: tuple[str, ...]) -> set[Commit]:
    """Snapshots in memory, on the lineage, that ranks on `nodes` can go on from.

    Each rank reads only the snapshots of its own node, so all nodes must hold the same one and keep their
    place in rank order. Ranks may be a step apart when they are killed; each keeps its two newest snapshots,
    so they have one in common.
    """
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


def _is_trusted(record: JobRecord, commit: Commit) -> bool:
    tainted_from = record.tainted.get(commit.attempt)
    return commit not in record.distrusted and (tainted_from is None or commit.step < tainted_from)


def nothing_trusted(ctx: StepContext) -> bool:
    """Whether there are checkpoints but none is trusted; only a person may then start the job over."""
    record = ctx.record
    return resume_point(ctx) is None and any(
        is_on_lineage(commit, record.lineage, record.attempt) for commit in record.commits
    )
