"""Handles exits of rank processes."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from megascale.core.act.lifecycle import stop
from megascale.core.act.recovery import reattribute, respond
from megascale.core.contract import effects as fx
from megascale.core.contract.events import RankExited
from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import Cause, FinishState, Milestone, PlanKind, Source, Timer
from megascale.core.decide.attribution import EXPLAINABLE, MACHINE, explained
from megascale.core.decide.same_error import error_name, seen_elsewhere, shared_error
from megascale.core.rules import RuleSet, Verdict, classify_text, rule_set
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault
from megascale.core.state.record import JobState, Plan

EXIT_COMPLETED: Final = 0
EXIT_SAVED_AND_LEFT: Final = 76
EXIT_UNSAVED: Final = 77
_SIGNAL_CODES: Final = 128
_SAME_TIME_S: Final = 0.5
_ECHOES: Final = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "gloo",
    "nccl",
)
_ECHO_TYPES: Final = frozenset(
    {"DistBackendError", "DistNetworkError", "DistStoreError", "ConnectionResetError", "BrokenPipeError"}
)


def on_exited(ctx: StepContext, event: RankExited) -> None:
    """Count ranks that completed or saved; the first other exit is a fault, later ones its consequences."""
    record = ctx.record
    if event.attempt != record.attempt or ctx.node(event.node, event.incarnation) is None:
        return
    if record.state is JobState.STOPPING:
        _maybe_reattribute(ctx, event)
        return
    if not ctx.ranks_active() or event.rank in ctx.live.exits:
        return
    if event.exit_code is not None and _is_orderly(ctx, event):
        _left(ctx, event, event.exit_code)
        return
    fault = fault_of(event, rule_set(ctx.policy.log_rules))
    if fault.consequence and ctx.live.left_first is not None:
        fault = left_early(ctx.live.left_first, fault.reason)
    respond(ctx, seen_elsewhere(ctx, fault))


def _is_orderly(ctx: StepContext, event: RankExited) -> bool:
    """Whether a rank left as agreed with the others; own scripts do not know EXIT_UNSAVED."""
    return event.exit_code in (EXIT_COMPLETED, EXIT_SAVED_AND_LEFT) or (
        event.exit_code == EXIT_UNSAVED and ctx.policy.reports_steps
    )


def _left(ctx: StepContext, event: RankExited, exit_code: int) -> None:
    """A rank completed, or left as agreed; the others have to follow within `startup_s`."""
    record, exits = ctx.record, ctx.live.exits
    if not exits:
        ctx.live.left_first = event if exit_code == EXIT_COMPLETED else None
        ctx.clear_deadline(Timer.HANG)
        ctx.set_deadline(Timer.LEAVING, ctx.policy.startup_s)
    exits[event.rank] = exit_code
    if len(exits) < record.ranks:
        return
    if EXIT_UNSAVED in exits.values() and ctx.policy.reports_steps:
        _left_unsaved(ctx, max(event.step, ctx.live.step))
    elif all(code == EXIT_COMPLETED for code in exits.values()):
        done = (
            f"all {ctx.policy.steps} steps are done" if ctx.policy.reports_steps else "all ranks ended well"
        )
        stop(ctx, Plan(PlanKind.FINISH, done, FinishState.COMPLETED))
    elif record.plan is not None:
        stop(ctx, record.plan)
    else:
        _left_unasked(ctx)


def _left_unsaved(ctx: StepContext, step: int) -> None:
    """The ranks could not save the state after `step`: a job that has done its steps is not complete."""
    plan, steps = ctx.record.plan, ctx.policy.steps
    if plan is not None and step < steps:
        stop(ctx, replace(plan, reason=f"{plan.reason}; {_unsaved(ctx, step)}"))
    elif step < steps:
        _left_unasked(ctx)
    else:
        reason = (
            f"failed to save: all {steps} steps are done, but {_unsaved(ctx, step)}; make room where "
            "checkpoints are kept and run the job again, which goes on from there"
        )
        ctx.emit(fx.Page, f"job fails: {reason}")
        stop(ctx, Plan(PlanKind.FINISH, reason, FinishState.FAILED))


def _unsaved(ctx: StepContext, step: int) -> str:
    newest = max(ctx.record.commits, default=None)
    kept = f"the newest checkpoint is of step {newest.step}" if newest else "there is no checkpoint"
    return f"the state after step {step} was not saved within {ctx.policy.save_s:g} s, and {kept}"


def _left_unasked(ctx: StepContext) -> None:
    """Ranks saved and left although nobody asked, as after losing their agent: relaunch.

    Leaving without having completed a step is a fault.
    """
    resumed = ctx.record.lineage.get(ctx.record.attempt)
    reason = "ranks saved and left without being asked"
    if ctx.live.step > (resumed.step if resumed else 0):
        stop(ctx, Plan(PlanKind.RELAUNCH, reason))
    else:
        respond(ctx, Fault(Cause.CRASH, f"{reason}, and without a step", at=ctx.now))


def on_leaving_overdue(ctx: StepContext) -> None:
    """Some ranks completed or left long ago, the others did not follow."""
    ended, first = len(ctx.live.exits), ctx.live.left_first
    reason = f"{_left_with(first)} while its peers still worked; " if first else ""
    reason += (
        f"{ended} of {ctx.record.ranks} ranks ended, the others did not within {ctx.policy.startup_s:g} s"
    )
    respond(ctx, Fault(Cause.HANG, reason, at=ctx.now))


def _maybe_reattribute(ctx: StepContext, event: RankExited) -> None:
    incident = ctx.record.incident
    if incident is None or incident.cause not in EXPLAINABLE:
        return
    if event.exit_code != EXIT_COMPLETED and _is_orderly(ctx, event):
        return
    if event.exit_code == EXIT_COMPLETED:
        if incident.consequence and event.at <= incident.milestones[Milestone.FAULT].at + _SAME_TIME_S:
            reattribute(ctx, left_early(event, incident.reason))
        return
    fault = fault_of(event, rule_set(ctx.policy.log_rules))
    if incident.consequence and not (fault := explained(ctx, fault)).consequence:
        reattribute(ctx, seen_elsewhere(ctx, fault))
    elif fault.error and fault.error == incident.error and incident.node not in (None, fault.node):
        reattribute(ctx, shared_error(fault, (incident.node or "", event.node)))


def left_early(event: RankExited, victim: str) -> Fault:
    """The fault of a rank that left well while others needed it; `victim` is what one of them said."""
    return Fault(
        Cause.USER_CODE,
        f"{_left_with(event)} while its peers still worked",
        node=event.node,
        rank=event.rank,
        at=event.at,
        evidence=(*event.tail[-2:], victim),
        blameless=True,
    )


def _left_with(event: RankExited) -> str:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S UTC")
    return f"rank {event.rank} on {event.node} left with code {event.exit_code} at {at}"


def _damaged(event: RankExited) -> tuple[Commit, ...] | None:
    """The commit that the rank found damaged; None when its exit report does not name it."""
    step, attempt = event.error_detail.get("step"), event.error_detail.get("attempt")
    return (Commit(step, attempt),) if isinstance(step, int) and isinstance(attempt, int) else None


def fault_of(event: RankExited, rules: RuleSet) -> Fault:
    """The fault behind an exit, from its signal, its exit report and the log rules."""
    where = f"rank {event.rank} on {event.node}"
    text = (event.error_message or (event.tail[-1] if event.tail else "")).strip()
    verdict = _verdict(event, rules)
    echo = _is_echo(event, text, verdict)
    commits: tuple[Commit, ...] | None = None
    ended_by = signal_of(event)
    if ended_by is not None:
        cause, reason = _by_signal(event, ended_by)
    elif event.error_type == "CheckpointCorruptError":
        cause, reason, commits = Cause.CHECKPOINT_CORRUPT, f"{where}: {_first_line(text)}", _damaged(event)
    elif echo:
        cause, reason = Cause.CRASH, f"{where} lost its peers: {_first_line(text)}"
    elif verdict.category in MACHINE and verdict.action in ("restart", "replace_node"):
        cause, reason = Cause.HARDWARE, f"{where}: {_first_line(verdict.line or text)}"
    elif event.error_type:
        cause, reason = Cause.USER_CODE, f"{where} raised {event.error_type}: {_first_line(text)}"
    else:
        said = f": {_first_line(verdict.line)}" if verdict.action == "fail_job" else ""
        cause, reason = Cause.CRASH, f"{where} exited with code {event.exit_code}{said}"
    advice = _advice(rules, verdict)
    told = (event.host_note, advice) if ended_by != signal.SIGTERM else ()
    return Fault(
        cause,
        "; ".join((reason, *(text for text in told if text))),
        node=event.node,
        rank=event.rank,
        at=event.at,
        source=Source.INJECTED if event.injected else Source.OBSERVED,
        consequence=echo,
        evidence=event.tail[-3:],
        action=verdict.action if ended_by is None else None,
        rule=verdict.rule,
        category=verdict.category,
        error_type=event.error_type,
        error="" if echo or ended_by is not None else error_name(verdict.line or text),
        advice="; ".join(text for text in told if text),
        blameless=verdict.action == "fail_job" and verdict.category in MACHINE,
        commits=commits,
    )


def signal_of(event: RankExited) -> int | None:
    """The signal that ended the rank, or a program that it waited for: a shell leaves with 128 + signal."""
    if event.signal is not None or event.exit_code is None or event.error_type:
        return event.signal
    number = event.exit_code - _SIGNAL_CODES
    return number if number in signal.valid_signals() and number > 0 else None


def _by_signal(event: RankExited, number: int) -> tuple[Cause, str]:
    where, name = f"rank {event.rank} on {event.node}", _signal_name(number)
    how = f"ended by {name} (exit {event.exit_code})" if event.signal is None else f"was killed by {name}"
    if number == signal.SIGTERM:
        return Cause.PLANNED, f"{where} {how}: its node is being taken away"
    if number == signal.SIGKILL and (event.signal is None or event.host_note):
        how += ", most likely out of memory"
    return Cause.CRASH, f"{where} {how}"


def _advice(rules: RuleSet, verdict: Verdict) -> str:
    rule = rules.named(verdict.rule) if verdict.rule is not None else None
    return rule.advice if rule is not None else ""


def _verdict(event: RankExited, rules: RuleSet) -> Verdict:
    report = f"{event.error_type}: {event.error_message}" if event.error_type else event.error_message
    return classify_text("\n".join((*event.tail, report)), rules, node=event.node)


def _is_echo(event: RankExited, text: str, verdict: Verdict) -> bool:
    """Whether the rank may only have lost its peers; a watchdog aborts, and says so in the log."""
    ended_by = signal_of(event)
    if ended_by is not None:
        return ended_by == signal.SIGABRT and verdict.scope == "consequence"
    if event.error_type == "CheckpointCorruptError":
        return False
    says_so = event.error_type in _ECHO_TYPES or any(word in text.lower() for word in _ECHOES)
    return says_so or verdict.scope == "consequence"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _first_line(text: str) -> str:
    return text.splitlines()[0][:300] if text else "no message"
