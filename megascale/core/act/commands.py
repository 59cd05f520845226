"""What people and the manifest ask for while the job runs."""

from __future__ import annotations

from megascale.core.act.graceful_stop import do_not_suspend, leave, save
from megascale.core.act.lifecycle import assemble, reopen, replenish
from megascale.core.act.swap import swap_out
from megascale.core.contract.events import ManualCommand, SpecChanged
from megascale.core.decide.blame import exclude, readmit
from megascale.core.decide.specs import take_in
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault, note_aside
from megascale.core.state.record import Plan, Stage


def on_command(turn: Turn, event: ManualCommand) -> None:
    """Obey; a command that makes no sense in the current stage changes nothing."""
    stage = turn.record.stage
    who = f" by {event.by}" if event.by else ""
    reason = f"{event.reason}{who}"
    if event.command == "evict":
        _evict(turn, event.node, reason)
    elif event.command == "release":
        readmit(turn, event.node, by_person=True)
    elif event.command == "save" and stage is Stage.RUNNING:
        save(turn, reason, leaving=False)
    elif event.command == "stop":
        leave(turn, Plan("finish", reason, "stopped"))
    elif event.command == "suspend":
        leave(turn, Plan("suspend", reason))
    elif event.command == "resume":
        _resume(turn)
    elif event.command == "reopen" and stage is Stage.FINISHED:
        reopen(turn)


def _resume(turn: Turn) -> None:
    if turn.record.stage is Stage.SUSPENDED:
        assemble(turn)
    else:
        do_not_suspend(turn)


def _evict(turn: Turn, node: str, reason: str) -> None:
    if turn.is_excluded(node):
        return
    fault = Fault("manual", f"{node} evicted: {reason}", node=node, at=turn.now)
    why = "a person asked for it"
    if turn.holds_ranks(node):
        swap_out(turn, fault, why)
    else:
        exclude(turn, node, note_aside(turn, fault, "replace_node", why), forced=True)
        replenish(turn)


def on_spec_changed(turn: Turn, event: SpecChanged) -> None:
    """New thresholds count at once, new sizes at the next launch; `suspend` acts."""
    was_suspended = turn.policy.suspend
    take_in(turn, event)
    if event.policy.suspend and not was_suspended:
        leave(turn, Plan("suspend", "spec.suspend was set"))
    elif was_suspended and not event.policy.suspend:
        _resume(turn)
    elif turn.record.stage is Stage.ASSEMBLING:
        assemble(turn)
    else:
        replenish(turn)


def on_spec_due(turn: Turn) -> None:
    """No restart came along in time to apply the changed spec: make one."""
    leave(turn, Plan("relaunch", f"changed spec {turn.record.spec.waiting} is applied"))
