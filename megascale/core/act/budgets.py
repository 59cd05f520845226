"""Counts restarts against their budgets, and failures without progress."""

from __future__ import annotations

from megascale.core.contract.vocabulary import Cause
from megascale.core.decide.backoff import RESET_S
from megascale.core.decide.breakers import MAY_REPEAT, got_past_its_start
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault


def note_failure(ctx: StepContext, fault: Fault) -> None:
    """Count a restart against the budget of its cause, and failures in a row at the same step."""
    record = ctx.record
    record.restarts[fault.cause] = record.restarts.get(fault.cause, 0) + 1
    record.failures += 1
    note_row(ctx, may_repeat=fault.cause in MAY_REPEAT)


def note_row(ctx: StepContext, *, may_repeat: bool) -> None:
    """Count a restart among those in a row, and if it may repeat, among those at the same step."""
    record, live = ctx.record, ctx.live
    if not ctx.steps_are_known() and ctx.ran_s() >= RESET_S:
        record.restarts_in_row = 0
    record.restarts_in_row += 1
    if got_past_its_start(ctx):
        record.failures_in_row = record.failures_at_step = 0
        return
    record.failures_in_row += 1
    if may_repeat:
        again = abs(live.step - record.failed_step) <= 1
        record.failures_at_step = record.failures_at_step + 1 if again else 1
        record.failed_step = live.step


def take_back_failure(ctx: StepContext, cause: Cause) -> None:
    """Undo the last `note_failure` of `cause`: the incident turned out to have another cause."""
    record = ctx.record
    record.restarts[cause] = max(0, record.restarts.get(cause, 0) - 1)
    record.failures = max(0, record.failures - 1)
    record.restarts_in_row = max(0, record.restarts_in_row - 1)
    record.failures_in_row = max(0, record.failures_in_row - 1)
    if cause in MAY_REPEAT:
        record.failures_at_step = max(0, record.failures_at_step - 1)


def note_progress(ctx: StepContext) -> None:
    """The job completed a step that it had not completed before: reset the counts of failures in a row."""
    ctx.record.failures_in_row = ctx.record.failures_at_step = ctx.record.restarts_in_row = 0
