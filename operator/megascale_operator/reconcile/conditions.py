"""`status.conditions` and `status.state` of a TrainingJob, and the Events of condition changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from megascale.core.api import FinishState
from megascale.observe.text import one_line
from megascale_operator.kube.clock import stamp
from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.invalid_spec import INVALID, MAX_MESSAGE, SPEC_VALID
from megascale_operator.reconcile.job import Job
from megascale_operator.reconcile.plan import PlannedEvent
from megascale_operator.reconcile.records import PodRecord
from megascale_operator.reconcile.slots import SlotsPlan

Status = Literal["True", "False", "Unknown"]

DRIVER_SILENT_S: Final = 90.0
"""Condition Running is Unknown when the driver has not updated its status for this long. A healthy driver
updates it at least every 45 s."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A metav1.Condition without observedGeneration and lastTransitionTime."""

    type: str
    status: Status
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended: `state` is completed, failed or stopped."""

    state: str
    reason: str
    message: str


def conditions_of(
    job: Job, phase: str, slots: SlotsPlan, driver: PodRecord | None, end: End | None, now: float
) -> list[Condition]:
    """Return all conditions of a job in `phase` (see `lifecycle.phase_of`).

    Args:
        driver: the newest driver pod, None if there is none.
        end: None while the job has not ended.
        now: Unix seconds.
    """
    return [
        _spec_valid(job),
        _slots_ready(job, phase, slots),
        _driver_ready(phase, driver),
        _running(job, phase, now),
        _recovering(job, phase),
        _suspended(job, phase),
        _ended("Complete", end, end is not None and end.state == FinishState.COMPLETED),
        _ended("Failed", end, end is not None and end.state != FinishState.COMPLETED),
    ]


def _spec_valid(job: Job) -> Condition:
    if job.invalid is None:
        return Condition(SPEC_VALID, "True", "Valid")
    used = f"; generation {job.generation} stays in use"
    return Condition(SPEC_VALID, "False", INVALID, job.invalid.message[: MAX_MESSAGE - len(used)] + used)


def _slots_ready(job: Job, phase: str, slots: SlotsPlan) -> Condition:
    have = f"{slots.ready} of {slots.wanted} slots are ready, the job needs {job.spec.nodes}"
    if phase != "active":
        return Condition("SlotsReady", "False", "NotNeeded", f"the job is {phase}")
    if slots.ready >= job.spec.nodes:
        return Condition("SlotsReady", "True", "EnoughSlots", f"at least {job.spec.nodes} slots are ready")
    if slots.refusals:
        return Condition("SlotsReady", "False", "Refused", f"{have}; {slots.refusals[0]['reason']}")
    return Condition("SlotsReady", "False", "WaitingForSlots", have)


def _driver_ready(phase: str, driver: PodRecord | None) -> Condition:
    if driver and driver.ready and driver.alive:
        return Condition("DriverReady", "True", "DriverRuns", f"pod {driver.name}")
    if phase != "active":
        return Condition("DriverReady", "False", "NotNeeded", f"the job is {phase}")
    if driver is None:
        return Condition("DriverReady", "False", "NoPod", "there is no driver pod yet")
    return Condition(
        "DriverReady", "False", "NotReady", f"pod {driver.name} on {driver.node or 'no node yet'}"
    )


def _running(job: Job, phase: str, now: float) -> Condition:
    if phase != "active":
        return Condition("Running", "False", "NotActive", f"the job is {phase}")
    state = str(job.driver.get("jobState") or "")
    if not state:
        return Condition("Running", "False", "Starting", "the driver has not reported yet")
    if now - job.driver_updated_at > DRIVER_SILENT_S:
        return Condition("Running", "Unknown", "DriverSilent", f"no driver update for {DRIVER_SILENT_S:g} s")
    if state in ("running", "diagnosing", "saving"):
        return Condition("Running", "True", "Training", "")
    return Condition("Running", "False", state.capitalize(), "no training step is running")


def _recovering(job: Job, phase: str) -> Condition:
    incident = job.driver.get("incident")
    if phase != "active" or not isinstance(incident, dict) or not incident:
        return Condition("Recovering", "False", "NoIncident")
    message = f"{incident.get('id', '')}: {incident.get('reason', '')}; {incident.get('action', '')}"
    return Condition("Recovering", "True", "IncidentOpen", message.strip(" :;"))


def _suspended(job: Job, phase: str) -> Condition:
    if phase == "suspended":
        return Condition(
            "Suspended", "True", "Suspended", "no ranks run; set spec.suspend to false to resume"
        )
    if job.spec.suspend and phase == "active":
        return Condition("Suspended", "False", "Saving", "saving a checkpoint before the slots are deleted")
    return Condition("Suspended", "False", "NotSuspended")


def _ended(kind: str, end: End | None, holds: bool) -> Condition:
    if end is None or not holds:
        return Condition(kind, "False", "NotFinished" if end is None else end.reason)
    return Condition(kind, "True", end.reason, end.message)


def state_of(job: Job, phase: str, conditions: list[Condition]) -> str:
    """Return `status.state`, which is for display in `kubectl get` only."""
    holding = {one.type for one in conditions if one.status == "True"}
    by_condition = (
        ("Complete", "Completed"), ("Failed", "Failed"), ("Suspended", "Suspended"),
        ("Recovering", "Recovering"), ("Running", "Running"),
    )  # fmt: skip
    if phase == "active" and job.spec.suspend:
        return "Suspending"
    for kind, word in by_condition:
        if kind in holding:
            return "Stopped" if word == "Failed" and job.final_state == FinishState.STOPPED else word
    unknown = any(one.type == "Running" and one.status == "Unknown" for one in conditions)
    return "Unknown" if unknown else "Starting" if "SlotsReady" in holding else "Pending"


def rendered(job: Job, conditions: list[Condition], now: float) -> list[Obj]:
    """Return the conditions for the status; lastTransitionTime changes only with a condition's status."""
    return [_rendered(job, one, now) for one in conditions]


def _rendered(job: Job, condition: Condition, now: float) -> Obj:
    before = job.condition(condition.type)
    flipped = before.get("status") != condition.status
    of_newest = condition.type == SPEC_VALID
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": one_line(condition.message, MAX_MESSAGE),
        "observedGeneration": job.newest_generation if of_newest else job.generation,
        "lastTransitionTime": stamp(now) if flipped else before["lastTransitionTime"],
    }


_WARNINGS: Final = ((SPEC_VALID, "False"), ("Failed", "True"), ("Recovering", "True"), ("Running", "Unknown"))
_EVENT_REASONS: Final = (
    (SPEC_VALID, "False", INVALID),
    ("SlotsReady", "True", "SlotsReady"),
    ("Running", "True", "Running"),
    ("Running", "Unknown", "DriverSilent"),
    ("Recovering", "True", "Recovering"),
    ("Recovering", "False", "Recovered"),
    ("Suspended", "True", "Suspended"),
    ("Suspended", "False", "Resumed"),
    ("Complete", "True", "Completed"),
    ("Failed", "True", "Failed"),
)


def transitions(job: Job, conditions: list[Condition]) -> list[PlannedEvent]:
    """Return one Event for each condition whose status changed to one listed in _EVENT_REASONS."""
    events = []
    for one in conditions:
        unset = "True" if one.type == SPEC_VALID else "False"
        before = job.condition(one.type).get("status", unset)
        reason = next((word for kind, to, word in _EVENT_REASONS if (kind, to) == (one.type, one.status)), "")
        if before != one.status and reason:
            warning = (one.type, one.status) in _WARNINGS
            events.append(PlannedEvent("Warning" if warning else "Normal", reason, one.message or reason))
    return events
