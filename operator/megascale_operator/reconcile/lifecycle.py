"""The phase of a job, and the plans that finish, suspend and delete it."""

from __future__ import annotations

import json
from typing import Final, Literal

from megascale.core.api import Command, FinishState
from megascale_operator.kube.clock import stamp, unix_s
from megascale_operator.kube.resources import PODS, TRAINING_JOBS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.conditions import End
from megascale_operator.reconcile.job import FINAL_STATES, Job
from megascale_operator.reconcile.observed import Observed
from megascale_operator.reconcile.plan import Delete, DeletePods, Patch, Plan, PlannedEvent
from megascale_operator.reconcile.records import PodRecord
from megascale_operator.reconcile.status_write import status_write

Phase = Literal["active", "suspended", "finished"]

_RESYNC_S: Final = 5.0
_DELETING: Final = "Deleting"
_PODS_GONE_S: Final = 180.0
"""After the save, how long to wait for the pods to go before the finalizer is removed. The garbage collector
deletes the remaining pods by their owner references."""
_STOP_COMMAND: Final = {
    "id": "deadline",
    "command": Command.STOP,
    "node": "",
    "reason": "activeDeadlineSeconds",
    "by": names.OPERATOR,
}


def phase_of(job: Job, pods: tuple[PodRecord, ...], now: float) -> Phase:
    """Return the job's phase. Only an active job has pods; a suspended or finished job's are deleted."""
    if end_of(job, now):
        return "finished"
    if job.spec.suspend and (job.driver_suspended or not pods):
        return "suspended"
    stated = job.condition("Suspended")
    if job.spec.suspend and stated.get("status") == "True" and stated["observedGeneration"] == job.generation:
        # The driver pod may already be deleted while the last slot pods terminate.
        return "suspended"
    return "active"


def end_of(job: Job, now: float) -> End | None:
    """Return how the job ended, None while it has not."""
    for kind in ("Complete", "Failed"):
        if job.holds(kind):
            condition = job.condition(kind)
            state = FinishState.COMPLETED if kind == "Complete" else FinishState.FAILED
            return End(state, condition["reason"], condition.get("message", ""))
    overdue = overdue_s(job, now)
    limit_s = job.spec.active_deadline_seconds
    expired = f"not complete {limit_s} s after its start (activeDeadlineSeconds)"
    if job.final_state == FinishState.COMPLETED:
        return End(FinishState.COMPLETED, "Completed", str(job.driver.get("reason") or "all steps are done"))
    if overdue is not None and (overdue >= job.spec.deletion_save_seconds or job.final_state):
        return End(FinishState.FAILED, "DeadlineExceeded", expired)
    if job.final_state in FINAL_STATES:
        reason = "Stopped" if job.final_state == FinishState.STOPPED else "JobFailed"
        return End(job.final_state, reason, str(job.driver.get("reason") or job.final_state))
    return None


def overdue_s(job: Job, now: float) -> float | None:
    """Return the seconds since activeDeadlineSeconds expired, None if it has not."""
    limit_s = job.spec.active_deadline_seconds
    if limit_s is None or not job.started_at:
        return None
    overdue = now - job.started_at - limit_s
    return overdue if overdue >= 0 else None


def enforce_deadline(job: Job, plan: Plan, now: float) -> None:
    """At activeDeadlineSeconds, command the driver to save and stop within deletionSaveSeconds."""
    limit_s = job.spec.active_deadline_seconds
    if limit_s is None or not job.started_at:
        return
    overdue = overdue_s(job, now)
    if overdue is None:
        plan.requeue_after(job.started_at + limit_s - now)
        return
    command = json.dumps(_STOP_COMMAND, separators=(",", ":"))
    if job.annotations.get(names.COMMAND) != command:
        body = {"metadata": {"annotations": {names.COMMAND: command}}}
        plan.add_step(Patch(TRAINING_JOBS, job.namespace, job.name, body))
        plan.events.append(
            PlannedEvent("Warning", "DeadlineExceeded", "requested the driver to save and stop")
        )
    plan.requeue_after(max(1.0, job.spec.deletion_save_seconds - overdue))


def tear_down(job: Job, observed: Observed, plan: Plan) -> None:
    """Delete the slot pods, then the driver pod, which reports their end."""
    slots, drivers = observed.role("slot"), observed.role("driver")
    if any(pod.alive for pod in slots):
        plan.add_step(DeletePods(job.namespace, names.pods_selector(job.name, "slot")))
    elif not slots:
        plan.add_step(
            *(
                Delete(PODS, pod.namespace, pod.name, pod.uid)
                for pod in drivers
                if not pod.deleting_since and pod.phase != "Succeeded"
            )
        )
    if slots or any(pod.phase != "Succeeded" for pod in drivers):
        plan.requeue_after(_RESYNC_S)


def expire(job: Job, plan: Plan, now: float) -> None:
    """Delete the job when ttlSecondsAfterFinished has passed since its end."""
    ttl_s, ended = job.spec.ttl_seconds_after_finished, unix_s(job.status.get("completionTime"))
    if ttl_s is None or not ended:
        return
    if now >= ended + ttl_s:
        plan.add_step(Delete(TRAINING_JOBS, job.namespace, job.name, job.uid))
    else:
        plan.requeue_after(ended + ttl_s - now)


def delete(obj: Obj, pods: tuple[PodRecord, ...], now: float) -> Plan:
    """Plan the deletion of a job: wait for the save, delete the pods, remove the finalizer.

    Until then `status.state` is Deleting.

    The spec need not be valid. The wait ends after deletionSaveSeconds, and at once with the force-delete
    annotation.
    """
    plan = Plan()
    meta = obj["metadata"]
    if names.FINALIZER not in (meta.get("finalizers") or ()):
        return plan
    spec = obj.get("spec") or {}
    save_s = float(spec.get("deletionSaveSeconds", 120))
    since = now - unix_s(meta["deletionTimestamp"])
    forced = (meta.get("annotations") or {}).get(names.FORCE_DELETE) == "true"
    state = ((obj.get("status") or {}).get("driver") or {}).get("state")
    drivers = [pod for pod in pods if pod.role == "driver" and pod.alive]
    stated = (
        [] if (obj.get("status") or {}).get("state") == _DELETING else [status_write(obj, state=_DELETING)]
    )
    # If no driver ever reported a state, no step was trained and there is nothing to save.
    if drivers and not forced and state and state not in FINAL_STATES and since < save_s:
        plan.add_step(*stated)
        plan.requeue_after(min(_RESYNC_S, save_s - since))
        return plan
    if pods and not forced and since < save_s + _PODS_GONE_S:
        plan.add_step(*stated)
        if any(pod.alive for pod in pods):
            plan.add_step(DeletePods(meta["namespace"], names.pods_selector(meta["name"])))
        plan.requeue_after(_RESYNC_S)
        return plan
    if pods:
        plan.add_step(DeletePods(meta["namespace"], names.pods_selector(meta["name"])))
        plan.events.append(
            PlannedEvent("Warning", "DeletedWithPods", "removed the finalizer although pods still exist")
        )
    index = meta["finalizers"].index(names.FINALIZER)
    path = f"/metadata/finalizers/{index}"
    plan.add_step(
        Patch(
            TRAINING_JOBS,
            meta["namespace"],
            meta["name"],
            [{"op": "test", "path": path, "value": names.FINALIZER}, {"op": "remove", "path": path}],
        )
    )
    return plan


def times(job: Job, phase: Phase, *, has_slots: bool, now: float) -> Obj:
    """Return startTime and completionTime for the status; each is set once and then kept."""
    found = {key: job.status[key] for key in ("startTime", "completionTime") if job.status.get(key)}
    if has_slots and "startTime" not in found:
        found["startTime"] = stamp(now)
    if phase == "finished" and "completionTime" not in found:
        found["completionTime"] = stamp(now)
    return found
