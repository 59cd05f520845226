"""Handles what people ask for and what changes in the manifest while the job runs."""

from __future__ import annotations

from megascale.core.act.exclusion import exclude, readmit
from megascale.core.act.graceful_stop import call_off_suspension, save, save_and_stop
from megascale.core.act.lifecycle import assemble, reopen, replenish
from megascale.core.act.node_changes import swap_out
from megascale.core.act.specs import take_in
from megascale.core.contract.events import ManualCommand, SpecChanged
from megascale.core.contract.names import short_revision
from megascale.core.contract.vocabulary import Action, Cause, Command, FinishState, PlanKind
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault, note_aside
from megascale.core.state.record import JobState, Plan, shortened


def on_command(ctx: StepContext, event: ManualCommand) -> None:
    """Carry out a person's command; one that does not apply in the current job state is ignored."""
    state = ctx.record.state
    who = f" by {event.by}" if event.by else ""
    node = event.node
    reason = shortened(f"{event.reason}{who}")
    if event.command == Command.EVICT and node is not None:
        _evict(ctx, node, reason)
    elif event.command == Command.RELEASE and node is not None:
        readmit(ctx, node, by_person=True)
    elif event.command == Command.SAVE and state is JobState.RUNNING:
        save(ctx, reason, then_stop=False)
    elif event.command == Command.STOP:
        save_and_stop(ctx, Plan(PlanKind.FINISH, reason, FinishState.STOPPED))
    elif event.command == Command.SUSPEND:
        save_and_stop(ctx, Plan(PlanKind.SUSPEND, reason))
    elif event.command == Command.RESUME:
        _resume(ctx)
    elif event.command == Command.REOPEN and state is JobState.FINISHED:
        reopen(ctx)


def _resume(ctx: StepContext) -> None:
    if ctx.record.state is JobState.SUSPENDED:
        assemble(ctx)
    else:
        call_off_suspension(ctx)


def _evict(ctx: StepContext, node: str, reason: str) -> None:
    if ctx.is_excluded(node):
        return
    fault = Fault(Cause.MANUAL, f"{node} evicted: {reason}", node=node, at=ctx.now)
    why = "a person asked for it"
    if ctx.holds_ranks(node):
        swap_out(ctx, fault, why)
    else:
        exclude(ctx, node, note_aside(ctx, fault, Action.REPLACE_NODE, why), forced=True)
        replenish(ctx)


def on_spec_changed(ctx: StepContext, event: SpecChanged) -> None:
    """Apply new thresholds at once and new sizes at the next launch; `suspend` stops or resumes the job."""
    was_suspended = ctx.policy.suspend
    if not take_in(ctx, event):
        return
    if event.policy.suspend and not was_suspended:
        save_and_stop(ctx, Plan(PlanKind.SUSPEND, "spec.suspend was set"))
    elif was_suspended and not event.policy.suspend:
        _resume(ctx)
    elif ctx.record.state is JobState.ASSEMBLING:
        assemble(ctx)
    else:
        replenish(ctx)


def on_spec_due(ctx: StepContext) -> None:
    """Restart the ranks to apply the changed spec, since nothing else restarted them in time."""
    what = short_revision(ctx.record.spec.waiting)
    save_and_stop(ctx, Plan(PlanKind.RELAUNCH, f"changed spec {what} is applied"))
