"""What the next attempt restores, and which checkpoints are no longer trusted."""

from __future__ import annotations

from megascale.core import effects as fx
from megascale.core.lineage import Commit, is_on_lineage, newest
from megascale.core.state import COMMITS_KEPT, LINEAGE_KEPT, Incident
from megascale.core.turn import Turn


def resume_point(turn: Turn) -> Commit | None:
    """The newest commit on the lineage that is trusted; None = from scratch."""
    record = turn.record
    return newest((c for c in record.commits if _is_trusted(turn, c)), record.lineage, record.attempt)


def _is_trusted(turn: Turn, commit: Commit) -> bool:
    tainted_from = turn.record.tainted.get(commit.attempt)
    return commit not in turn.record.distrusted and (tainted_from is None or commit.step < tainted_from)


def nothing_trusted(turn: Turn) -> bool:
    """Whether there are checkpoints but none may be restored: then starting over is not ours to decide."""
    record = turn.record
    return resume_point(turn) is None and any(
        is_on_lineage(commit, record.lineage, record.attempt) for commit in record.commits
    )


def remember_commit(turn: Turn, commit: Commit) -> bool:
    """Keep a commit that may be restored one day; False for one known or off the lineage.

    A commit beyond the step at which a later attempt took over never counts again, so it must not push
    out those that do.
    """
    record = turn.record
    if commit in record.commits or not is_on_lineage(commit, record.lineage, record.attempt):
        return False
    kept = [c for c in record.commits if is_on_lineage(c, record.lineage, record.attempt)]
    record.commits = sorted([*kept, commit])[-COMMITS_KEPT:]
    return True


def taint(turn: Turn, step: int) -> None:
    """Distrust what this attempt saves from `step` on, also what becomes known only later."""
    tainted, attempt = turn.record.tainted, turn.record.attempt
    tainted[attempt] = min(step, tainted.get(attempt, step))


def roll_back(turn: Turn, incident: Incident, commits: tuple[Commit, ...] | None) -> None:
    """Never restore these commits again; None = the one that would be restored now."""
    record = turn.record
    if commits is None:
        current = resume_point(turn)
        commits = (current,) if current else ()
    for commit in commits:
        if commit not in record.distrusted:
            record.distrusted.append(commit)
            turn.emit(
                fx.Page,
                f"checkpoint of step {commit.step}, attempt {commit.attempt} is not restored again: "
                f"{incident.reason}",
                incident=incident.id,
            )
    del record.distrusted[:-COMMITS_KEPT]


def begin_attempt(turn: Turn, resume: Commit | None) -> None:
    """The next attempt's number, and where it hangs on the lineage: only its ancestors are kept."""
    record = turn.record
    record.attempt += 1
    record.lineage[record.attempt] = resume
    kept: dict[int, Commit | None] = {}
    current: int | None = record.attempt
    while current is not None and current in record.lineage and len(kept) < LINEAGE_KEPT:
        parent = kept[current] = record.lineage[current]
        current = parent.attempt if parent else None
    record.lineage = dict(sorted(kept.items()))
    record.tainted = {attempt: step for attempt, step in record.tainted.items() if attempt in kept}
