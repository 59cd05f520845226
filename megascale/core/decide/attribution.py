"""What a hardware event or log line explains: an exit shortly before or after it (arXiv 2410.21680)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from megascale.core.decide.node_losses import domain_of
from megascale.core.rules import HardwareIncident, Hit, correlate
from megascale.core.state.context import Turn
from megascale.core.state.incidents import Fault

MACHINE: Final = frozenset({"gpu", "network", "storage", "host"})
EXPLAINABLE: Final = frozenset({"crash", "user_code", "hang", "node_lost", "launch_failed"})
_STRENGTH: Final = {"none": 0, "alert": 1, "restart": 2, "fail_job": 3, "replace_node": 4}


def correlated(turn: Turn, hits: Collection[Hit]) -> list[HardwareIncident]:
    """The hits as incidents: those of one fault together."""
    switches = {hit.node: domain_of(turn, hit.node) for hit in hits}
    return correlate(list(hits), turn.policy.correlate_s, switch_of=switches)


def hardware_fault(found: HardwareIncident, *, reason: str = "") -> Fault:
    """The fault that these hits are evidence of."""
    main = max(found.hits, key=lambda hit: _STRENGTH[hit.action])
    return Fault(
        "hardware",
        f"{found.reason}{reason}",
        node=found.nodes[0],
        at=found.start,
        evidence=tuple(hit.line for hit in found.hits if hit.line),
        action=found.action,
        rule=main.rule,
        category=found.category,
    )


def suspicious(turn: Turn, nodes: Collection[str], since: float) -> HardwareIncident | None:
    """The strongest sign of a machine fault on one of `nodes` since then, if it is more than an alert."""
    hits = [hit for hit in turn.live.signals if hit.node in nodes and hit.at >= since]
    found = [
        incident
        for incident in correlated(turn, hits)
        if incident.kind == "node"
        and incident.category in MACHINE
        and incident.action in ("restart", "replace_node")
    ]
    return max(found, key=lambda incident: (_STRENGTH[incident.action], incident.start), default=None)


def explained(turn: Turn, fault: Fault) -> Fault:
    """`fault`, or what is behind it according to the signals of the time before it.

    A rank that only lost its peers is explained by a sign on any other node of the job.
    """
    if fault.cause not in EXPLAINABLE or not fault.node:
        return fault
    since = (fault.at or turn.now) - turn.policy.attribution_before_s
    nodes = set(turn.record.assignment) if fault.consequence else {fault.node}
    found = suspicious(turn, nodes, since)
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
    return _in_words_of_log(turn, fault)


def _in_words_of_log(turn: Turn, fault: Fault) -> Fault:
    """A crash whose log had just named an error of code, data or memory was that error."""
    since = (fault.at or turn.now) - turn.policy.correlate_s
    lines = [
        hit
        for hit in turn.live.signals
        if hit.node == fault.node
        and hit.at >= since
        and hit.category not in MACHINE
        and hit.action in ("restart", "fail_job")
        and hit.scope == "cause"
    ]
    if not lines or fault.cause != "crash" or fault.node_gone:
        return fault
    hit = max(lines, key=lambda line: (_STRENGTH[line.action], line.at))
    return replace(
        fault,
        cause="user_code",
        reason=f"{hit.line or hit.rule}; then {fault.reason}",
        consequence=False,
        action=hit.action,
        rule=hit.rule,
        category=hit.category,
    )
