"""The recovery ladder: which action a fault calls for, cheapest first, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from megascale.core.contract.names import short_revision
from megascale.core.contract.patterns import linear_pattern
from megascale.core.contract.policy import RecoveryOverride
from megascale.core.contract.vocabulary import Action, Cause
from megascale.core.decide.blame import WEIGHTS, blame_of, lemon_reason
from megascale.core.decide.breakers import no_progress, spent_budget, spent_cause_budget
from megascale.core.decide.program_starts import never_begins
from megascale.core.decide.same_error import fails_wherever_it_runs, repeated_error
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault

FREE_OF_BUDGET: Final = frozenset({Cause.MANUAL, Cause.PLANNED})
_REFUSED: Final = frozenset({"ManifestError", "SettingsError"})
"""Exceptions of our own ranks (`megascale.errors`) that are about the manifest alone."""
_CONTAINER_CURES: Final = frozenset({Cause.HANG, Cause.LAUNCH_FAILED, Cause.HARDWARE})


@dataclass(frozen=True, slots=True)
class Decision:
    """An action and why it was chosen."""

    action: Action
    reason: str


def decide(ctx: StepContext, fault: Fault) -> Decision:
    """The cheapest action that can cure `fault` and has budget left."""
    if fault.cause == Cause.PLANNED and fault.rank is not None:
        return _after_notice(ctx)
    if fault.cause in FREE_OF_BUDGET:
        return Decision(Action.REPLACE_NODE, f"{fault.reason}; no budget charged, no blame")
    return (
        _refused(ctx, fault)
        or _by_override(ctx, fault)
        or _by_settings(ctx, fault)
        or _everywhere(ctx, fault)
        or _by_cause(ctx, fault)
        or _by_node(ctx, fault)
    )


def _after_notice(ctx: StepContext) -> Decision:
    """A rank was told to end: its node goes by itself if it is taken away, so the ranks are started again.

    A program that always ends so is not started for ever.
    """
    stuck = no_progress(ctx)
    if stuck:
        return Decision(Action.FAIL_JOB, stuck)
    return Decision(Action.RESTART_IN_PLACE, "planned: no budget charged, no blame")


def _everywhere(ctx: StepContext, fault: Fault) -> Decision | None:
    if not fault.everywhere:
        return None
    why = "the same error on several nodes is configuration or code: no node is at fault"
    cure = f"; {fault.advice}" if fault.advice else ""
    if fails_wherever_it_runs(ctx, fault):
        return _give_up(ctx, f"{why}, and no restart cures it{cure}")
    return Decision(Action.RESTART_IN_PLACE, f"{why}{cure}")


def _refused(ctx: StepContext, fault: Fault) -> Decision | None:
    spent = spent_budget(ctx) or spent_cause_budget(ctx, fault.cause)
    if spent:
        return Decision(Action.FAIL_JOB, spent)
    stuck = no_progress(ctx) or repeated_error(ctx, fault)
    return _give_up(ctx, stuck) if stuck else None


def _give_up(ctx: StepContext, why: str) -> Decision:
    """Return to the spec before if the running one has not completed a new step, else fail the job."""
    spec = ctx.record.spec
    if spec.previous and ctx.record.best_step <= spec.step:
        return Decision(
            Action.REVERT_SPEC,
            f"{why} with the changed spec {short_revision(spec.running)}; "
            f"{short_revision(spec.previous)} worked",
        )
    return Decision(Action.FAIL_JOB, why)


def _by_override(ctx: StepContext, fault: Fault) -> Decision | None:
    for number, override in enumerate(ctx.policy.overrides):
        if _matches(override, fault):
            if override.action in (Action.REPLACE_NODE, Action.RESTART_CONTAINER) and not fault.node:
                return Decision(
                    Action.RESTART_IN_PLACE,
                    f"recovery.overrides[{number}] is about a node, but which is not known",
                )
            return Decision(override.action, f"recovery.overrides[{number}] says so")
    return None


def _by_settings(ctx: StepContext, fault: Fault) -> Decision | None:
    """A manifest that our own ranks refuse: every attempt would end alike.

    `InputError` may be about one node, such as one without a GPU, so it counts only before the first step.
    """
    early = ctx.record.best_step == 0
    refused = fault.error_type in _REFUSED or (fault.error_type == "InputError" and early)
    if not refused or not ctx.policy.reports_steps:
        return None
    return _give_up(ctx, "its ranks refuse the manifest, and no restart changes that")


def _matches(override: RecoveryOverride, fault: Fault) -> bool:
    xid = None if override.xid is None else f"xid-{override.xid}"
    wanted = (
        (override.cause, fault.cause),
        (override.rule, fault.rule),
        (override.category, fault.category),
        (override.error_type, fault.error_type),
        (xid, fault.rule),
    )
    text = "\n".join((fault.reason, *fault.evidence))
    return all(not want or want == have for want, have in wanted) and (
        not override.message or linear_pattern(override.message).search(text)
    )


def _by_cause(ctx: StepContext, fault: Fault) -> Decision | None:
    known = (
        (
            fault.cause == Cause.CHECKPOINT_CORRUPT,
            Decision(
                Action.ROLL_BACK, "the damaged checkpoint is not used again; the one before it is restored"
            ),
        ),
        (
            fault.cause == Cause.NUMERICS,
            Decision(
                Action.ROLL_BACK, "the state is not trusted from there on; an earlier checkpoint is restored"
            ),
        ),
        (
            fault.node_gone,
            Decision(Action.REPLACE_NODE, "the node is gone; a spare takes its ranks, else a new node"),
        ),
        (
            fault.action == "replace_node" and fault.node is not None,
            Decision(Action.REPLACE_NODE, f"{fault.rule or fault.category} is sure: no restart cures it"),
        ),
    )
    for holds, decision in known:
        if holds:
            return decision
    return _at_start(ctx, fault) or _as_consequence(fault)


def _as_consequence(fault: Fault) -> Decision | None:
    if not fault.consequence:
        return None
    return Decision(
        Action.RESTART_IN_PLACE, "it only lost its peers; nobody is blamed before the first is known"
    )


def _at_start(ctx: StepContext, fault: Fault) -> Decision | None:
    """Fail a job that has done nothing yet and whose code or data no restart changes."""
    if fault.action != "fail_job":
        return None
    if ctx.policy.reports_steps and ctx.record.best_step == 0:
        return Decision(
            Action.FAIL_JOB, "it fails before its first step; restarting changes neither code nor data"
        )
    if not ctx.steps_are_known() and _is_told_by_job(ctx, fault):
        return Decision(Action.FAIL_JOB, f"the job's own rule {fault.rule} says that no restart cures it")
    if not ctx.steps_are_known() and never_begins(ctx, fault):
        return Decision(
            Action.FAIL_JOB, "the program cannot begin; restarting changes neither code nor arguments"
        )
    return None


def _is_told_by_job(ctx: StepContext, fault: Fault) -> bool:
    """Whether a rule of spec.logRules asks for the end of the job."""
    return any(
        fault.rule in (rule.id, rule.rule) and rule.action == "fail_job" for rule in ctx.policy.log_rules
    )


def _by_node(ctx: StepContext, fault: Fault) -> Decision:
    node, weight = fault.node, WEIGHTS.get(fault.cause, 0.0)
    if node is not None and fault.blames_node and weight and _can_compare(ctx):
        lemon = lemon_reason(ctx, node)
        if lemon:
            return Decision(Action.REPLACE_NODE, lemon)
        if blame_of(ctx, node) + weight > ctx.policy.node_blame_limit:
            return Decision(
                Action.REPLACE_NODE, f"{node} failed repeatedly; a restart is not trusted to cure it"
            )
        if _container_helps(ctx, fault.cause, node):
            return Decision(Action.RESTART_CONTAINER, f"a restart of its processes did not cure {node}")
    return Decision(
        Action.RESTART_IN_PLACE, "restarting the processes on the same nodes is the cheapest cure"
    )


def _can_compare(ctx: StepContext) -> bool:
    """Whether failures tell anything of the node: neither steps nor other nodes may show that the program
    works at all.
    """
    return ctx.steps_are_known() or len(ctx.record.assignment) > 1


def _container_helps(ctx: StepContext, cause: Cause, node: str) -> bool:
    """Whether a restart of the container is due: a second such fault of the node, and none of its restarts
    within `container_restart_s`.
    """
    last = ctx.record.container_restarts.get(node)
    allowed = last is None or ctx.now - last >= ctx.policy.container_restart_s
    return allowed and cause in _CONTAINER_CURES and blame_of(ctx, node) >= 0.5
