"""What people and the manifest ask for while the job runs."""

from __future__ import annotations

from megascale.core.act.graceful_stop import call_off_suspension, save, save_and_stop
from megascale.core.act.lifecycle import assemble, reopen, replenish
from megascale.core.act.swap import swap_out
from megascale.core.contract.events import ManualCommand, SpecChanged
from megascale.core.decide.blame import exclude, readmit
from megascale.core.decide.specs import take_in
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, note_aside
from megascale.core.state.record import JobState, Plan


def on_command(ctx: StepContext, event: ManualCommand) -> None:
    """Obey; a command that makes no sense in the current stage changes nothing."""
    state = ctx.record.state
    who = f" by {event.by}" if event.by else ""
    reason = f"{event.reason}{who}"
    if event.command == "evict":
        _evict(ctx, event.node, reason)
    elif event.command == "release":
        readmit(ctx, event.node, by_person=True)
    elif event.command == "save" and state is JobState.RUNNING:
        save(ctx, reason, then_stop=False)
    elif event.command == "stop":
        save_and_stop(ctx, Plan("finish", reason, "stopped"))
    elif event.command == "suspend":
        save_and_stop(ctx, Plan("suspend", reason))
    elif event.command == "resume":
        _resume(ctx)
    elif event.command == "reopen" and state is JobState.FINISHED:
        reopen(ctx)


def _resume(ctx: StepContext) -> None:
    if ctx.record.state is JobState.SUSPENDED:
        assemble(ctx)
    else:
        call_off_suspension(ctx)


def _evict(ctx: StepContext, node: str, reason: str) -> None:
    if ctx.is_excluded(node):
        return
    fault = Fault("manual", f"{node} evicted: {reason}", node=node, at=ctx.now)
    why = "a person asked for it"
    if ctx.holds_ranks(node):
        swap_out(ctx, fault, why)
    else:
        exclude(ctx, node, note_aside(ctx, fault, "replace_node", why), forced=True)
        replenish(ctx)


def on_spec_changed(ctx: StepContext, event: SpecChanged) -> None:
    """New thresholds count at once, new sizes at the next launch; `suspend` acts."""
    was_suspended = ctx.policy.suspend
    take_in(ctx, event)
    if event.policy.suspend and not was_suspended:
        save_and_stop(ctx, Plan("suspend", "spec.suspend was set"))
    elif was_suspended and not event.policy.suspend:
        _resume(ctx)
    elif ctx.record.state is JobState.ASSEMBLING:
        assemble(ctx)
    else:
        replenish(ctx)


def on_spec_due(ctx: StepContext) -> None:
    """No restart came along in time to apply the changed spec: make one."""
    save_and_stop(ctx, Plan("relaunch", f"changed spec {ctx.record.spec.waiting} is applied"))
