"""Decisions on quarantine requests for one node. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from megascale_operator.quarantine import patches
from megascale_operator.quarantine.patches import Operations
from megascale_operator.reconcile.mark import MODES, Mark, mark_of
from megascale_operator.reconcile.records import NodeRecord

OVERRIDE_S: Final = 3600.0
"""A node that a person put back into service is not quarantined again for this long."""
Cause = Literal["mode", "breaker", "person", "unknown"]


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job's request to quarantine a node.

    `job` is namespace/name, `mode` the job's `remediation.mode`, `cause` that of the incident.
    """

    job: str
    node: str
    incident: str
    reason: str
    mode: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on one request.

    Attributes:
        operations: JSON patch of the node, empty for no change.
        mark: the node's quarantine mark afterwards, None for none.
        refused: why the request is refused, "" if it is granted.
        cause: the refusal's cause, for metrics.
        requeue_s: seconds after which to decide again, None for never.
    """

    operations: Operations
    mark: Mark | None = None
    refused: str = ""
    cause: Cause | None = None
    requeue_s: float | None = None

    @property
    def granted(self) -> bool:
        return not self.refused


def effective_mode(ceiling: str, wanted: str) -> str:
    """Return the weaker of the operator's mode (`ceiling`) and the job's."""
    return MODES[min(MODES.index(ceiling), MODES.index(wanted))]


def decide(
    node: NodeRecord | None,
    request: JobRequest,
    ceiling: str,
    breaker: str,
    now: float,
    *,
    granted_before: bool = False,
) -> Decision:
    """Grant or refuse one request.

    Args:
        node: None if there is no such node.
        ceiling: the operator's mode.
        breaker: why no node may be quarantined, "" if one may.
        now: Unix seconds.
        granted_before: whether this request was granted before; a node released since then stays in service.
    """
    if node is None:
        return Decision([], refused=f"there is no node {request.node}", cause="unknown")
    mode = effective_mode(ceiling, request.mode)
    if mode == "Observe":
        message = f"mode is Observe: {node.name} is not changed"
        return Decision([], refused=message, cause="mode")
    mark = mark_of(node)
    if mark and mark.overridden:
        left_s = mark.overridden + OVERRIDE_S - now
        if mark.incident == request.incident or left_s > 0:
            message = f"a person put {node.name} back into service"
            return Decision([], mark, message, "person", left_s if left_s > 0 else None)
        mark = None
    if granted_before if mark is None else MODES.index(mark.mode) >= MODES.index(mode):
        return Decision([], mark)
    if mark is None and breaker:
        return Decision([], refused=f"breaker open: {breaker}", cause="breaker", requeue_s=60.0)
    since = mark.since if mark else now
    wanted = Mark(mode, request.job, request.incident, request.reason, since, cause=request.cause)
    operations, complete = patches.quarantine(node, wanted)
    return Decision(operations, complete)


def detect_manual_release(node: NodeRecord, now: float) -> Operations:
    """Detect that a person uncordoned a quarantined node, or removed its quarantine taint or annotation.

    Returns the JSON patch that completes the release, empty if there is nothing to change. The patch removes
    the taint and keeps a remaining cordon, which may be the person's own. The annotation stays for OVERRIDE_S
    to prevent a new quarantine (docs/decisions/0054-a-person-wins-over-node-care.md).
    """
    mark = mark_of(node)
    if mark is None:
        return patches.release(node) if node.tainted else []
    if mark.overridden:
        return patches.release(node) if now - mark.overridden >= OVERRIDE_S else []
    uncordoned = "cordon" in mark.set and not node.unschedulable
    untainted = "taint" in mark.set and not node.tainted
    if not uncordoned and not untainted:
        return []
    return patches.release(node, keep_mark=replace(mark, set=(), overridden=now))
