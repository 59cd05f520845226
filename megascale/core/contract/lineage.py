"""Which commits count.

The job record lists for every attempt which commit it resumed from. Walking back from the current
attempt gives the only line of history that may be restored: a stale attempt's late commit and a
branch cut by a rollback are never on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Commit:
    """A committed checkpoint: the state after `step`, written by `attempt`."""

    step: int
    attempt: int


Lineage = Mapping[int, Commit | None]
"""attempt -> the commit it resumed from, None for a start from scratch."""


def is_on_lineage(commit: Commit, lineage: Lineage, attempt: int) -> bool:
    """Whether `commit` may be restored by an attempt that follows `attempt`.

    `attempt` itself may have committed at any step; an earlier attempt counts only up to the step
    where its successor took over.
    """
    current: int | None = attempt
    limit: int | None = None
    while current is not None:
        if commit.attempt == current:
            return limit is None or commit.step <= limit
        parent = lineage.get(current)
        current, limit = (parent.attempt, parent.step) if parent else (None, None)
    return False


def newest(commits: Iterable[Commit], lineage: Lineage, attempt: int) -> Commit | None:
    """The newest commit on the lineage of `attempt`, or None."""
    return max((c for c in commits if is_on_lineage(c, lineage, attempt)), default=None)
