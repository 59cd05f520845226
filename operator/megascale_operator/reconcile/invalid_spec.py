"""A spec that the API server stored and the manifest's own checks refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from megascale_operator.kube.clock import stamp
from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.plan import Plan, PlannedEvent
from megascale_operator.reconcile.status_write import status_write

SPEC_VALID: Final = "SpecValid"
INVALID: Final = "InvalidSpec"
MAX_MESSAGE: Final = 1024
_RESYNC_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class InvalidSpec:
    """Why the newest spec of a job is refused, and which generation is used instead.

    Attributes:
        message: names each wrong field.
        last_valid: `metadata.generation` of the spec in use.
    """

    message: str
    last_valid: int


def plan_without_manifest(obj: Obj, message: str, now: float) -> Plan:
    """Return the plan of a job that never had a valid spec: only condition SpecValid is written.

    Args:
        message: names each wrong field.
        now: Unix seconds.
    """
    plan = Plan()
    plan.requeue_after(_RESYNC_S)
    meta, status = obj["metadata"], obj.get("status") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    before = conditions.get(SPEC_VALID) or {}
    condition = {
        "type": SPEC_VALID,
        "status": "False",
        "reason": INVALID,
        "message": message[:MAX_MESSAGE],
        "observedGeneration": int(meta.get("generation", 0)),
        "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == "False" else stamp(now),
    }
    if before == condition:
        return plan
    conditions[SPEC_VALID] = condition
    state = status.get("state") or INVALID
    plan.add_step(status_write(obj, state=state, conditions=list(conditions.values())))
    plan.events.append(PlannedEvent("Warning", INVALID, message[:MAX_MESSAGE]))
    return plan
