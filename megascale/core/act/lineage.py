"""Changes the lineage of attempts and its commits: remember, distrust, begin the next attempt."""

from __future__ import annotations

from megascale.core.contract import effects as fx
from megascale.core.contract.lineage import Commit, Lineage, is_on_lineage
from megascale.core.decide.restore import resume_point
from megascale.core.state.context import StepContext
from megascale.core.state.record import (
    COMMITS_KEPT,
    LINEAGE_KEPT,
    Incident,
    JobRecord,
)


def remember_commit(ctx: StepContext, commit: Commit) -> bool:
    """Keep a commit on the lineage; returns False for one that is known or not on it.

    A commit beyond the step at which a later attempt took over can never be restored, so it must not push
    out those that can.
    """
    record = ctx.record
    if commit in record.commits or not is_on_lineage(commit, record.lineage, record.attempt):
        return False
    kept = [c for c in record.commits if is_on_lineage(c, record.lineage, record.attempt)]
    record.commits = sorted([*kept, commit])[-COMMITS_KEPT:]
    return True


def taint(ctx: StepContext, step: int) -> None:
    """Distrust every checkpoint that this attempt saves from `step` on, those not committed yet included."""
    tainted, attempt = ctx.record.tainted, ctx.record.attempt
    tainted[attempt] = min(step, tainted.get(attempt, step))


def roll_back(ctx: StepContext, incident: Incident, commits: tuple[Commit, ...] | None) -> None:
    """Never restore these commits, or any snapshot, again; None = the commit that would be restored now."""
    record = ctx.record
    record.memory_from = record.attempt + 1
    if commits is None:
        current = resume_point(ctx)
        commits = (current,) if current else ()
    for commit in commits:
        if commit not in record.distrusted:
            record.distrusted.append(commit)
            ctx.emit(
                fx.Page,
                f"checkpoint of step {commit.step}, attempt {commit.attempt} is not restored again: "
                f"{incident.reason}",
                incident=incident.id,
            )
    del record.distrusted[:-COMMITS_KEPT]


def begin_attempt(ctx: StepContext, resume: Commit | None) -> None:
    """Number the next attempt and record what it resumes from; attempts that are not its ancestors go."""
    record = ctx.record
    record.attempt += 1
    record.lineage[record.attempt] = resume
    kept = _ancestors(record.lineage, record.attempt)
    if len(kept) > LINEAGE_KEPT:
        _leave_out_idle(record, kept)
    record.lineage = dict(sorted(kept.items())[-LINEAGE_KEPT:])
    record.tainted = {attempt: step for attempt, step in record.tainted.items() if attempt in kept}


def _ancestors(lineage: Lineage, attempt: int) -> dict[int, Commit | None]:
    """The lineage without the attempts that `attempt` does not descend from."""
    kept: dict[int, Commit | None] = {}
    current: int | None = attempt
    while current is not None and current in lineage:
        parent = kept[current] = lineage[current]
        current = parent.attempt if parent else None
    return kept


def _leave_out_idle(record: JobRecord, lineage: dict[int, Commit | None]) -> None:
    """Drop ancestors that committed nothing, and link their successor to what they resumed from.

    Many restarts from memory must not push the last attempt that did commit out of the job record.
    The newest two may still be needed: their snapshots exist.
    """
    committed = {commit.attempt for commit in record.commits}
    for attempt in sorted(lineage)[:-1]:
        parent = lineage[attempt]
        if parent is not None and parent.attempt in lineage and parent.attempt not in committed:
            lineage[attempt] = lineage.pop(parent.attempt)
