"""Bounds past which automation stops acting: restart budgets, no progress, too many nodes excluded."""

from __future__ import annotations

import math
from typing import Final

from megascale.core.contract.vocabulary import Cause
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault

HOUR_S: Final = 3600.0
_MAY_REPEAT: Final = frozenset(
    {Cause.CRASH, Cause.USER_CODE, Cause.HANG, Cause.LAUNCH_FAILED, Cause.NUMERICS}
)
_ANYWHERE: Final = 3
_WEEK_S: Final = 7 * 86400.0


def spent_budget(ctx: StepContext) -> str | None:
    """Why no further restart is allowed whatever its cause, None if it is."""
    record, policy = ctx.record, ctx.policy
    if sum(record.restarts.values()) >= policy.max_restarts:
        return f"all {policy.max_restarts} restarts of recovery.maxRestarts are used"
    return None


def spent_cause_budget(ctx: StepContext, cause: Cause) -> str | None:
    """Why no further restart for `cause` is allowed, None if it is."""
    used, budget = ctx.record.restarts.get(cause, 0), ctx.policy.budgets.get(cause)
    if budget is not None and used >= budget:
        return f"all {budget} restarts of recovery.budgets.{cause} are used"
    return None


def no_progress(ctx: StepContext) -> str | None:
    """Why restarting again is pointless, None if it is not."""
    record, limit = ctx.record, ctx.policy.no_progress_limit
    step = record.best_step + 1
    if record.failures_at_step >= limit:
        return f"{record.failures_at_step} restarts in a row failed before step {step} was completed"
    if record.failures_in_row >= _ANYWHERE * limit:
        return (
            f"{record.failures_in_row} failures in a row, at various steps, before step {step} was completed"
        )
    return None


def note_failure(ctx: StepContext, fault: Fault) -> None:
    """Charge a restart to its budget; failing again where it failed before is no progress."""
    record, live = ctx.record, ctx.live
    record.restarts[fault.cause] = record.restarts.get(fault.cause, 0) + 1
    record.failures += 1
    if not ctx.policy.reports_steps and ctx.now - live.progress_at > ctx.policy.startup_s:
        note_progress(ctx)
    record.failures_in_row += 1
    if fault.cause in _MAY_REPEAT:
        again = abs(live.step - record.failed_step) <= 1
        record.failures_at_step = record.failures_at_step + 1 if again else 1
        record.failed_step = live.step


def take_back_failure(ctx: StepContext, cause: Cause) -> None:
    """The failure charged last was none of its own."""
    record = ctx.record
    record.restarts[cause] = max(0, record.restarts.get(cause, 0) - 1)
    record.failures = max(0, record.failures - 1)
    record.failures_in_row = max(0, record.failures_in_row - 1)
    if cause in _MAY_REPEAT:
        record.failures_at_step = max(0, record.failures_at_step - 1)


def note_progress(ctx: StepContext) -> None:
    """A step was completed that never was before."""
    ctx.record.failures_in_row = ctx.record.failures_at_step = 0


def exclusion_bound(ctx: StepContext) -> str | None:
    """Which bound forbids excluding one more node, None if none does."""
    policy = ctx.policy
    this_week = [t for t in ctx.record.exclusion_times if t > ctx.now - _WEEK_S]
    if sum(1 for t in this_week if t > ctx.now - HOUR_S) >= policy.max_nodes_per_hour:
        return f"remediation.maxNodesPerHour = {policy.max_nodes_per_hour} is reached"
    most = max(policy.max_nodes_per_hour, math.ceil(policy.max_excluded_share * policy.nodes))
    if len(this_week) >= most:
        return f"{most} nodes were excluded within a week, more than a job of this size should need"
    return None
