"""Taking over a job record that a newer version of the program wrote, after a rollback of the image.

Fields that are not known were ignored when the job record was decoded. What is left here are things that this
version would have to act on and cannot: they are taken out, a person is paged with what they were, and every
state that waits has a timer again. A job state that is not known ends by stopping whatever ranks there are
and launching again: it costs one restart, and nobody is blamed.
"""

from __future__ import annotations

from megascale.core.act.lifecycle import stop
from megascale.core.contract.codec import is_known
from megascale.core.contract.vocabulary import PlanKind, Timer
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobState, Plan


def take_out_unknown(ctx: StepContext) -> list[str]:
    """Drop pending effects, timers and plans that this version cannot act on; names what is not known."""
    record = ctx.record
    found = [f"effect {kind}" for kind in ctx.drop_unknown_pending()]
    for name in [name for name in record.deadlines if not is_known(name)]:
        del record.deadlines[name]
        found.append(f"timer {name}")
    if record.plan is not None and not is_known(record.plan.then):
        found.append(f"plan {record.plan.then}")
        record.plan = Plan(PlanKind.RELAUNCH, record.plan.reason)
    if not is_known(record.state):
        found.append(f"job state {record.state}")
    return found


def leave_unknown_state(ctx: StepContext) -> None:
    """Stop and launch again where the state is not known; restore the timer of one that waits."""
    state = ctx.record.state
    if not is_known(state):
        stop(ctx, Plan(PlanKind.RELAUNCH, f"job state {state} of a newer version is not known"))
        return
    policy = ctx.policy
    waits = {
        JobState.LAUNCHING: (Timer.STARTUP, policy.startup_s),
        JobState.DIAGNOSING: (Timer.FLAP, policy.flap_tolerance_s),
        JobState.SAVING: (Timer.SAVE, policy.save_s),
        JobState.STOPPING: (Timer.KILL, policy.kill_s),
    }
    if state in waits and waits[state][0] not in ctx.record.deadlines:
        ctx.set_deadline(*waits[state])
