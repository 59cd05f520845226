"""Bounds beyond which automation stops acting: restart budgets, no progress, excluded nodes."""

from __future__ import annotations

import math
from typing import Final

from megascale.core.contract.vocabulary import Cause
from megascale.core.state.context import StepContext

HOUR_S: Final = 3600.0
MAY_REPEAT: Final = frozenset({Cause.CRASH, Cause.USER_CODE, Cause.HANG, Cause.LAUNCH_FAILED, Cause.NUMERICS})
_ANYWHERE: Final = 3
WEEK_S: Final = 7 * 86400.0


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
    if not ctx.steps_are_known():
        return _no_life(ctx)
    if record.failures_at_step >= limit:
        return f"{record.failures_at_step} restarts in a row failed before step {step} was completed"
    if record.failures_in_row >= _ANYWHERE * limit:
        return (
            f"{record.failures_in_row} failures in a row, at various steps, before step {step} was completed"
        )
    return None


def got_past_its_start(ctx: StepContext) -> bool:
    """Whether the attempt of a script that reports no steps ran long enough to have done some work."""
    return not ctx.steps_are_known() and ctx.ran_s() >= ctx.policy.minimum_run_s


def _no_life(ctx: StepContext) -> str | None:
    """As `no_progress`, of a script that reports no steps: it is judged by the time that it ran."""
    failures, policy = ctx.record.failures_in_row, ctx.policy
    if failures < policy.no_progress_limit or got_past_its_start(ctx):
        return None
    return (
        f"{failures} restarts in a row failed within {policy.minimum_run_s:g} s of their start "
        "(recovery.minimumRunSeconds)"
    )


def exclusion_bound(ctx: StepContext) -> str | None:
    """Which bound forbids excluding one more node, None if none does."""
    policy = ctx.policy
    this_week = [t for t in ctx.record.exclusion_times if t > ctx.now - WEEK_S]
    if sum(1 for t in this_week if t > ctx.now - HOUR_S) >= policy.max_nodes_per_hour:
        return f"remediation.maxNodesPerHour = {policy.max_nodes_per_hour} is reached"
    most = max(policy.max_nodes_per_hour, math.ceil(policy.max_excluded_share * policy.nodes))
    if len(this_week) >= most:
        return f"{most} nodes were excluded within a week, more than a job of this size should need"
    return None
