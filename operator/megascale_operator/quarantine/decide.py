"""What to do about one node that jobs want out of service. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from megascale_operator.quarantine import patches
from megascale_operator.quarantine.patches import Operations
from megascale_operator.reconcile.mark import MODES, Mark, mark_of
from megascale_operator.reconcile.records import NodeRecord

OVERRIDE_S: Final = 3600.0
"""After a person put a node back, automation leaves it alone for so long."""
Cause = Literal["mode", "breaker", "person", "unknown"]


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A job's request to quarantine a node, with the mode that the job allows."""

    job: str
    node: str
    incident: str
    reason: str
    mode: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows for one request.

    Attributes:
        operations: JSON patch, empty = the node is as it should be.
        mark: the node's mark afterwards, None = it has none.
        refused: why the request is refused, "" if it is granted; cause: in one word.
        again_s: when to look again.
    """

    operations: Operations
    mark: Mark | None = None
    refused: str = ""
    cause: Cause | None = None
    again_s: float | None = None

    @property
    def granted(self) -> bool:
        return not self.refused


def effective_mode(ceiling: str, wanted: str) -> str:
    """The milder of the operator's and the job's mode."""
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
        breaker: why nothing may be quarantined, "" if something may.
        granted_before: this very request was granted; a node that was released since is left in service.
    """
    if node is None:
        return Decision([], refused=f"there is no node {request.node}", cause="unknown")
    mode = effective_mode(ceiling, request.mode)
    if mode == "Observe":
        message = f"mode is Observe: nothing is done to {node.name}"
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
        return Decision([], refused=f"breaker open: {breaker}", cause="breaker", again_s=60.0)
    since = mark.since if mark else now
    wanted = Mark(mode, request.job, request.incident, request.reason, since)
    operations, complete = patches.quarantine(node, wanted)
    return Decision(operations, complete)


def put_back_by_person(node: NodeRecord, now: float) -> Operations:
    """What follows when a person uncordoned a node that we cordoned, or took our taint or annotation away.

    The person wins: our taint goes, a cordon that is still there may be theirs by now and stays, and the
    annotation remembers it for a while. Empty = nobody did.
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
