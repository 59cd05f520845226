"""Ends an attempt on purpose: the ranks save first if they make steps, and are killed if they do not end."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from megascale.core.act.lifecycle import finish, stop, suspend
from megascale.core.contract import effects as fx
from megascale.core.contract.vocabulary import PlanKind, Timer
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobState, Plan

_STRENGTH: Final = {PlanKind.RELAUNCH: 0, PlanKind.SUSPEND: 1, PlanKind.FINISH: 2}


def save_and_stop(ctx: StepContext, plan: Plan) -> None:
    """Have the ranks save and exit if they make steps, else kill them; then carry out `plan`.

    A plan that is already under way stays if it is stronger: finish over suspend over relaunch.
    """
    record = ctx.record
    if record.state is JobState.RUNNING and ctx.steps_are_known():
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
    """Have all ranks save a checkpoint; a save that is being asked for serves all who want one."""
    if not then_stop and ctx.is_pending(fx.SaveNow):
        return
    ctx.emit(
        fx.SaveNow, reason, attempt=ctx.record.attempt, then_stop=then_stop, deadline_s=ctx.policy.save_s
    )


def on_save_overdue(ctx: StepContext) -> None:
    """Kill the ranks, which did not save and exit in time; the job goes on from the newest commit."""
    plan = ctx.record.plan or Plan(PlanKind.RELAUNCH, "save timed out")
    stop(ctx, replace(plan, reason=f"{plan.reason}; the ranks were stopped before they had saved"))


def call_off_suspension(ctx: StepContext) -> None:
    """Turn a suspension that is under way into a relaunch."""
    plan = ctx.record.plan
    if plan is not None and plan.then == PlanKind.SUSPEND:
        ctx.record.plan = Plan(PlanKind.RELAUNCH, "the suspension was called off")
