"""What people and the manifest ask for while the job runs."""

from __future__ import annotations

from megascale.core import effects as fx
from megascale.core.events import ManualCommand, SpecChanged
from megascale.core.lifecycle import assemble, finish, reopen, replenish, stop, suspend
from megascale.core.recovery import Decision, Fault, charge, exclude, open_incident
from megascale.core.state import Plan, Stage
from megascale.core.turn import Turn


def on_command(turn: Turn, event: ManualCommand) -> None:
    """Obey; a command that makes no sense in the current stage changes nothing."""
    who = f" by {event.by}" if event.by else ""
    reason = f"{event.reason}{who}"
    if event.command == "evict":
        _evict(turn, event.node, reason)
    elif event.command == "release":
        turn.record.excluded.pop(event.node, None)
        turn.record.blame.pop(event.node, None)
    elif event.command == "save":
        if turn.record.stage is Stage.RUNNING:
            _save(turn, reason, leave=False)
    elif event.command == "stop":
        leave(turn, Plan("finish", reason, "stopped"))
    elif event.command == "suspend":
        leave(turn, Plan("suspend", reason))
    elif event.command == "resume" and turn.record.stage is Stage.SUSPENDED:
        assemble(turn)
    elif event.command == "reopen" and turn.record.stage is Stage.FINISHED:
        reopen(turn)


def leave(turn: Turn, plan: Plan) -> None:
    """Save and stop if steps are being made, else just stop; then `plan`."""
    record = turn.record
    if record.stage is Stage.RUNNING:
        record.stage, record.plan = Stage.SAVING, plan
        turn.clear_deadline("hang")
        _save(turn, plan.reason, leave=True)
        turn.set_deadline("save", turn.policy.save_s)
    elif record.stage in (Stage.LAUNCHING, Stage.DIAGNOSING):
        stop(turn, plan)
    elif record.stage in (Stage.STOPPING, Stage.SAVING):
        record.plan = plan
    elif plan.then == "finish" and record.stage is not Stage.FINISHED:
        finish(turn, plan.state, plan.reason)
    elif plan.then == "suspend" and record.stage is Stage.ASSEMBLING:
        suspend(turn, plan.reason)


def _save(turn: Turn, reason: str, *, leave: bool) -> None:
    turn.emit(fx.SaveNow, reason, attempt=turn.record.attempt, leave=leave, deadline_s=turn.policy.save_s)


def on_save_overdue(turn: Turn) -> None:
    """The ranks did not save and leave in time: stop them, the newest commit is what remains."""
    stop(turn, turn.record.plan or Plan("relaunch", "save timed out"))


def _evict(turn: Turn, node: str, reason: str) -> None:
    record = turn.record
    if node in record.excluded:
        return
    fault = Fault("manual", f"{node} evicted: {reason}", node=node, at=turn.now)
    if node not in record.assignment or not turn.ranks_active():
        incident = open_incident(turn, fault) if record.incident is None else record.incident
        exclude(turn, node, incident, forced=True)
        replenish(turn)
        return
    incident = open_incident(turn, fault)
    decision = Decision("replace_node", "a person asked for it")
    incident.action, incident.decision = decision.action, decision.reason
    incident.mark("decided", turn.now)
    leave(turn, charge(turn, fault, incident, decision))


def on_spec_changed(turn: Turn, event: SpecChanged) -> None:
    """New thresholds count at once, new sizes at the next launch; `suspend` acts."""
    was_suspended = turn.policy.suspend
    turn.policy = event.policy
    if event.policy.suspend and not was_suspended:
        leave(turn, Plan("suspend", "spec.suspend was set"))
    elif was_suspended and not event.policy.suspend and turn.record.stage is Stage.SUSPENDED:
        assemble(turn)
    else:
        replenish(turn)
