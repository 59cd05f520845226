"""Which hardware event or log line explains a fault shortly before or after it (arXiv 2410.21680)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from megascale.core.contract.policy import MACHINE_CLASSES
from megascale.core.contract.vocabulary import Cause
from megascale.core.decide.node_losses import domain_of
from megascale.core.rules import HardwareIncident, RuleMatch, correlate
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault

MACHINE: Final = frozenset((*MACHINE_CLASSES, "oom"))  # host memory is the node's too
EXPLAINABLE: Final = frozenset(
    {Cause.CRASH, Cause.USER_CODE, Cause.HANG, Cause.NODE_LOST, Cause.LAUNCH_FAILED}
)
_STRENGTH: Final[dict[str, int]] = {"none": 0, "alert": 1, "restart": 2, "fail_job": 3, "replace_node": 4}


def correlated(ctx: StepContext, matches: Collection[RuleMatch]) -> list[HardwareIncident]:
    """Group rule matches into hardware incidents: the matches of one fault together."""
    switches = {match.node: domain_of(ctx, match.node) or "" for match in matches}
    return correlate(list(matches), ctx.policy.correlate_s, switch_of=switches)


def hardware_fault(found: HardwareIncident, *, reason: str = "") -> Fault:
    """The fault that the matches of `found` are evidence of."""
    main = max(found.matches, key=lambda match: _STRENGTH[match.action])
    return Fault(
        Cause.HARDWARE,
        f"{found.reason}{reason}",
        node=found.nodes[0],
        at=found.start,
        evidence=tuple(match.line for match in found.matches if match.line),
        action=found.action,
        rule=main.rule,
        category=found.category,
    )


def suspicious(ctx: StepContext, nodes: Collection[str], since: float) -> HardwareIncident | None:
    """The strongest hardware incident on one of `nodes` since `since` that asks for more than an alert."""
    matches = [match for match in ctx.live.signals if match.node in nodes and match.at >= since]
    found = [
        incident
        for incident in correlated(ctx, matches)
        if incident.kind == "node"
        and incident.category in MACHINE
        and incident.action in ("restart", "replace_node")
    ]
    return max(found, key=lambda incident: (_STRENGTH[incident.action], incident.start), default=None)


def explained(ctx: StepContext, fault: Fault) -> Fault:
    """`fault`, or the fault behind it according to the matches of the time before it.

    A rank that only lost its peers may be explained by a match on any node of the job.
    """
    if fault.cause not in EXPLAINABLE or not fault.node:
        return fault
    since = (fault.at or ctx.now) - ctx.policy.attribution_before_s
    nodes = set(ctx.record.assignment) if fault.consequence else {fault.node}
    found = suspicious(ctx, nodes, since)
    if found is not None:
        cause = hardware_fault(found, reason=f"; then {fault.reason}")
        return replace(
            cause,
            at=fault.at,
            source=fault.source,
            rank=fault.rank if cause.node == fault.node else None,
            node_gone=fault.node_gone and cause.node == fault.node,
            evidence=cause.evidence + fault.evidence,
        )
    return _as_log_says(ctx, fault)


def _as_log_says(ctx: StepContext, fault: Fault) -> Fault:
    """Turn a crash into the error of code, data or memory that its log reported just before."""
    since = (fault.at or ctx.now) - ctx.policy.correlate_s
    lines = [
        match
        for match in ctx.live.signals
        if match.node == fault.node
        and match.at >= since
        and match.category not in MACHINE_CLASSES
        and match.action in ("restart", "fail_job")
        and match.scope == "cause"
    ]
    if not lines or fault.cause != Cause.CRASH or fault.node_gone:
        return fault
    match = max(lines, key=lambda line: (_STRENGTH[line.action], line.at))
    return replace(
        fault,
        cause=Cause.USER_CODE,
        reason=f"{match.line or match.rule}; then {fault.reason}",
        consequence=False,
        action=match.action,
        rule=match.rule,
        category=match.category,
    )
