"""Ending an attempt on purpose: save first if steps are being made, and see to it that it ends."""

from __future__ import annotations

from typing import Final

from megascale.core.act.lifecycle import finish, stop, suspend
from megascale.core.contract import effects as fx
from megascale.core.contract.vocabulary import PlanKind, Timer
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobState, Plan

_STRENGTH: Final = {PlanKind.RELAUNCH: 0, PlanKind.SUSPEND: 1, PlanKind.FINISH: 2}


def save_and_stop(ctx: StepContext, plan: Plan) -> None:
    """Save and stop if steps are known to be made, else just stop; then `plan`, or the stronger one."""
    record = ctx.record
    unwatched = not ctx.policy.reports_steps and record.best_step == 0
    if record.state is JobState.RUNNING and not unwatched:
        record.state, record.plan = JobState.SAVING, plan
        ctx.clear_deadline(Timer.HANG, Timer.GROW, Timer.LEAVING)
        ctx.drop_pending(fx.SaveNow)
        save(ctx, plan.reason, then_stop=True)
        ctx.set_deadline(Timer.SAVE, ctx.policy.save_s)
    elif record.state in (JobState.RUNNING, JobState.LAUNCHING, JobState.DIAGNOSING):
        stop(ctx, plan)
    elif record.state in (JobState.STOPPING, JobState.SAVING):
        if record.plan is None or _STRENGTH[plan.then] >= _STRENGTH[record.plan.then]:
            record.plan = plan
    elif plan.state is not None and record.state is not JobState.FINISHED:
        finish(ctx, plan.state, plan.reason)
    elif plan.then == PlanKind.SUSPEND and record.state is JobState.ASSEMBLING:
        suspend(ctx, plan.reason)


def save(ctx: StepContext, reason: str, *, then_stop: bool) -> None:
    """Ask all ranks for a checkpoint."""
    ctx.emit(
        fx.SaveNow, reason, attempt=ctx.record.attempt, then_stop=then_stop, deadline_s=ctx.policy.save_s
    )


def on_save_overdue(ctx: StepContext) -> None:
    """The ranks did not save and leave in time: stop them, the newest commit is what remains."""
    stop(ctx, ctx.record.plan or Plan(PlanKind.RELAUNCH, "save timed out"))


def call_off_suspension(ctx: StepContext) -> None:
    """A suspension under way is called off: the ranks are launched again instead."""
    plan = ctx.record.plan
    if plan is not None and plan.then == PlanKind.SUSPEND:
        ctx.record.plan = Plan(PlanKind.RELAUNCH, "the suspension was called off")
