"""In which phase a job is, and the steps that end one: finish, suspend, delete."""

from __future__ import annotations

import json
from typing import Final, Literal

from megascale_operator.kube.clock import stamp, unix_s
from megascale_operator.kube.resources import PODS, TRAINING_JOBS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.conditions import End
from megascale_operator.reconcile.job import FINAL_STATES, Job
from megascale_operator.reconcile.observed import Observed
from megascale_operator.reconcile.plan import Delete, DeletePods, Note, Patch, Plan
from megascale_operator.reconcile.records import PodRecord

Phase = Literal["active", "suspended", "finished", "deleting"]

_LOOK_AGAIN_S: Final = 5.0
_PODS_GONE_S: Final = 180.0
"""From the end of saving until the finalizer goes although pods are still there; owner references remain."""
_STOP: Final = {
    "id": "deadline", "command": "stop", "node": "", "reason": "activeDeadlineSeconds", "by": names.OPERATOR,
}  # fmt: skip


def phase_of(job: Job, pods: tuple[PodRecord, ...], now: float) -> Phase:
    """active: it should have pods; suspended, finished: it should have none."""
    if job.obj["metadata"].get("deletionTimestamp"):
        return "deleting"
    if end_of(job, now):
        return "finished"
    if job.spec.suspend and (job.says_suspended or not pods):
        return "suspended"
    stated = job.condition("Suspended")
    if job.spec.suspend and stated.get("status") == "True" and stated["observedGeneration"] == job.generation:
        # On the way down: the driver has been let go before the last slot was gone.
        return "suspended"
    return "active"


def end_of(job: Job, now: float) -> End | None:
    """How the job ended, None while it goes on."""
    for kind in ("Complete", "Failed"):
        if job.holds(kind):
            condition = job.condition(kind)
            state = "completed" if kind == "Complete" else "failed"
            return End(state, condition["reason"], condition.get("message", ""))
    late = overdue_s(job, now)
    limit_s = job.spec.active_deadline_seconds
    expired = f"not complete {limit_s} s after its start (activeDeadlineSeconds)"
    if job.final_state == "completed":
        return End("completed", "Completed", str(job.driver.get("reason") or "all steps are done"))
    if late is not None and (late >= job.spec.deletion_save_seconds or job.final_state):
        return End("failed", "DeadlineExceeded", expired)
    if job.final_state in FINAL_STATES:
        reason = "Stopped" if job.final_state == "stopped" else "JobFailed"
        return End(job.final_state, reason, str(job.driver.get("reason") or job.final_state))
    return None


def overdue_s(job: Job, now: float) -> float | None:
    """Seconds since activeDeadlineSeconds ran out, None if it did not."""
    limit_s = job.spec.active_deadline_seconds
    if limit_s is None or not job.started_at:
        return None
    late = now - job.started_at - limit_s
    return late if late >= 0 else None


def watch_deadline(job: Job, plan: Plan, now: float) -> None:
    """At activeDeadlineSeconds the driver is told to save and stop; it gets deletionSaveSeconds for that."""
    limit_s = job.spec.active_deadline_seconds
    if limit_s is None or not job.started_at:
        return
    late = overdue_s(job, now)
    if late is None:
        plan.again(job.started_at + limit_s - now)
        return
    order = json.dumps(_STOP, separators=(",", ":"))
    if job.annotations.get(names.COMMAND) != order:
        body = {"metadata": {"annotations": {names.COMMAND: order}}}
        plan.then(Patch(TRAINING_JOBS, job.namespace, job.name, body))
        plan.notes.append(Note("Warning", "DeadlineExceeded", "told the driver to save and stop"))
    plan.again(max(1.0, job.spec.deletion_save_seconds - late))


def tear_down(job: Job, observed: Observed, plan: Plan) -> None:
    """Slot pods first, then the driver, which may still have something to say."""
    slots, drivers = observed.role("slot"), observed.role("driver")
    if any(pod.alive for pod in slots):
        plan.then(DeletePods(job.namespace, names.pods_selector(job.name, "slot")))
    elif not slots:
        plan.then(
            *(
                Delete(PODS, pod.namespace, pod.name, pod.uid)
                for pod in drivers
                if not pod.deleting_since and pod.phase != "Succeeded"
            )
        )
    if slots or any(pod.phase != "Succeeded" for pod in drivers):
        plan.again(_LOOK_AGAIN_S)


def expire(job: Job, plan: Plan, now: float) -> None:
    """Delete the job ttlSecondsAfterFinished after its end."""
    ttl_s, ended = job.spec.ttl_seconds_after_finished, unix_s(job.status.get("completionTime"))
    if ttl_s is None or not ended:
        return
    if now >= ended + ttl_s:
        plan.then(Delete(TRAINING_JOBS, job.namespace, job.name, job.uid))
    else:
        plan.again(ended + ttl_s - now)


def delete(obj: Obj, pods: tuple[PodRecord, ...], now: float) -> Plan:
    """Steps of a deletion: wait for the save, remove the pods, let the object go. Needs no valid spec."""
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
    # Where no driver ever reported, nothing was trained that could be saved.
    if drivers and not forced and state and state not in FINAL_STATES and since < save_s:
        plan.again(min(_LOOK_AGAIN_S, save_s - since))
        return plan
    if pods and not forced and since < save_s + _PODS_GONE_S:
        if any(pod.alive for pod in pods):
            plan.then(DeletePods(meta["namespace"], names.pods_selector(meta["name"])))
        plan.again(_LOOK_AGAIN_S)
        return plan
    if pods:
        plan.then(DeletePods(meta["namespace"], names.pods_selector(meta["name"])))
        plan.notes.append(Note("Warning", "DeletedWithPods", "let go although pods are still there"))
    index = meta["finalizers"].index(names.FINALIZER)
    path = f"/metadata/finalizers/{index}"
    plan.then(
        Patch(
            TRAINING_JOBS,
            meta["namespace"],
            meta["name"],
            [{"op": "test", "path": path, "value": names.FINALIZER}, {"op": "remove", "path": path}],
        )
    )
    return plan


def times(job: Job, phase: Phase, *, has_slots: bool, now: float) -> Obj:
    """startTime and completionTime, each set once."""
    found = {key: job.status[key] for key in ("startTime", "completionTime") if job.status.get(key)}
    if has_slots and "startTime" not in found:
        found["startTime"] = stamp(now)
    if phase == "finished" and "completionTime" not in found:
        found["completionTime"] = stamp(now)
    return found
