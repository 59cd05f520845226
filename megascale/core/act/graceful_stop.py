"""Ending an attempt on purpose: save first if steps are being made, and see to it that it ends."""

from __future__ import annotations

from typing import Final

from megascale.core.act.lifecycle import finish, stop, suspend
from megascale.core.contract import effects as fx
from megascale.core.state.context import Turn
from megascale.core.state.record import Plan, Stage

_STRENGTH: Final = {"relaunch": 0, "suspend": 1, "finish": 2}


def leave(turn: Turn, plan: Plan) -> None:
    """Save and stop if steps are known to be made, else just stop; then `plan`, or the stronger one."""
    record = turn.record
    unwatched = not turn.policy.reports_steps and record.best_step == 0
    if record.stage is Stage.RUNNING and not unwatched:
        record.stage, record.plan = Stage.SAVING, plan
        turn.clear_deadline("hang", "grow", "leaving")
        turn.drop_pending(fx.SaveNow)
        save(turn, plan.reason, leaving=True)
        turn.set_deadline("save", turn.policy.save_s)
    elif record.stage in (Stage.RUNNING, Stage.LAUNCHING, Stage.DIAGNOSING):
        stop(turn, plan)
    elif record.stage in (Stage.STOPPING, Stage.SAVING):
        if record.plan is None or _STRENGTH[plan.then] >= _STRENGTH[record.plan.then]:
            record.plan = plan
    elif plan.then == "finish" and record.stage is not Stage.FINISHED:
        finish(turn, plan.state, plan.reason)
    elif plan.then == "suspend" and record.stage is Stage.ASSEMBLING:
        suspend(turn, plan.reason)


def save(turn: Turn, reason: str, *, leaving: bool) -> None:
    """Ask all ranks for a checkpoint."""
    turn.emit(fx.SaveNow, reason, attempt=turn.record.attempt, leave=leaving, deadline_s=turn.policy.save_s)


def on_save_overdue(turn: Turn) -> None:
    """The ranks did not save and leave in time: stop them, the newest commit is what remains."""
    stop(turn, turn.record.plan or Plan("relaunch", "save timed out"))


def do_not_suspend(turn: Turn) -> None:
    """A suspension under way is called off: the ranks are launched again instead."""
    plan = turn.record.plan
    if plan is not None and plan.then == "suspend":
        turn.record.plan = Plan("relaunch", "the suspension was called off")
