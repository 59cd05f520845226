"""Compute the plan for one TrainingJob from its spec and observed objects. Pure."""

from __future__ import annotations

from typing import Final

from megascale_operator.kube.resources import CONFIG_MAPS, PODS, TRAINING_JOBS, Obj, Resource
from megascale_operator.reconcile import answers, lifecycle, maps, names
from megascale_operator.reconcile.conditions import conditions_of, rendered, state_of, transitions
from megascale_operator.reconcile.driver_pod import driver_pod
from megascale_operator.reconcile.job import Job, requests_of
from megascale_operator.reconcile.observed import Observed, Settings
from megascale_operator.reconcile.plan import Action, Apply, Create, Delete, Patch, Plan, PlannedEvent
from megascale_operator.reconcile.rbac import binding, rights
from megascale_operator.reconcile.records import PodRecord
from megascale_operator.reconcile.slot_pod import SlotPods
from megascale_operator.reconcile.slots import SlotsPlan, plan_slots
from megascale_operator.reconcile.slots_file import SlotsFile, next_file

SLOTS_PERIOD_S: Final = 1.0
"""`slots.json` is written at most this often."""
COUNTS_PERIOD_S: Final = 2.0
"""Changes of slot counts alone are written to the status at most this often."""
_RESYNC_S: Final = 30.0
_DRIVER_PAUSE_S: Final = 10.0
_MAX_AVOIDED: Final = 64
_CHECKPOINTS_IN_PODS: Final = (
    "spec.checkpoint.uri is not set and the operator has no --checkpoint-root: checkpoints are stored in the "
    "pods and lost with them, so the job restarts from step 0 when it loses a node"
)


def reconcile(job: Job, observed: Observed, settings: Settings, now: float) -> Plan:
    """Return the plan for a job that is not being deleted; the caller has checked `spec.managedBy`.

    Args:
        now: Unix seconds.
    """
    phase = lifecycle.phase_of(job, observed.pods, now)
    plan = Plan()
    if names.FINALIZER not in (job.obj["metadata"].get("finalizers") or ()):
        plan.add_step(_add_finalizer(job))
    requests = requests_of(job)
    file = next_file(
        SlotsFile.parse(observed.slots_document(job.name)),
        observed.role("slot"),
        observed.ended,
        observed.incarnations,
        observed.nodes,
        requests,
        now,
        job.spec.scheduling.topology_keys,
    )
    slots = SlotsPlan(0)
    if phase == "active":
        slots = plan_slots(job, requests, observed, file, now)
        _activate(job, slots, file, observed, settings, plan, now)
        lifecycle.enforce_deadline(job, plan, now)
        plan.requeue_after(_RESYNC_S)
    else:
        _update_slots_map(job, observed, file, plan, now)
        lifecycle.tear_down(job, observed, plan)
    _update_status(job, phase, slots, observed, plan, now)
    if phase == "finished":
        lifecycle.expire(job, plan, now)
    return plan


def _add_finalizer(job: Job) -> Patch:
    finalizers = [*(job.obj["metadata"].get("finalizers") or ()), names.FINALIZER]
    body = {"metadata": {"finalizers": finalizers, "resourceVersion": job.obj["metadata"]["resourceVersion"]}}
    return Patch(TRAINING_JOBS, job.namespace, job.name, body)


def _activate(
    job: Job,
    slots: SlotsPlan,
    file: SlotsFile,
    observed: Observed,
    settings: Settings,
    plan: Plan,
    now: float,
) -> None:
    """Plan the objects, driver pod and slot pods of an active job.

    Incarnations of new slot pods are stored in `slots.json` before the pods are created, so that no pod name
    is used twice (docs/decisions/0051-numbers-of-pods-are-written-first.md).
    """
    plan.add_step(*_objects(job, observed, settings))
    plan.add_step(*_applied([binding(job)], observed), *_ensure_driver(job, observed, settings, plan, now))
    slots_map_current = _update_slots_map(
        job, observed, file.with_new({one.slot: one.incarnation for one in slots.create}), plan, now
    )
    plan.add_step(*slots.delete)
    driver = _driver_digest(job, observed)
    plan.add_step(*_announce_driver(driver, observed.role("slot")))
    if slots.create and slots_map_current:
        pods = SlotPods(job, settings.image, slots.avoid, driver)
        plan.add_step(*(Create(PODS, pods.build(slot)) for slot in slots.create))
        plan.events.append(PlannedEvent("Normal", "SlotsCreated", f"creating {len(slots.create)} slot pods"))
        if not job.started_at and not job.spec.checkpoint.uri and job.spec.runtime.megatron:
            plan.events.append(PlannedEvent("Warning", "CheckpointsInPods", _CHECKPOINTS_IN_PODS))
    if slots.requeue_s is not None:
        plan.requeue_after(slots.requeue_s)


def _objects(job: Job, observed: Observed, settings: Settings) -> list[Action]:
    job_map = maps.job_map(job, observed.ca_pem, settings.detection)
    wanted: list[tuple[Resource, Obj]] = [*rights(job), (CONFIG_MAPS, job_map)]
    made = [
        Create(CONFIG_MAPS, body)
        for body in maps.driver_maps(job)
        if ("ConfigMap", body["metadata"]["name"]) not in observed.owned
    ]
    return [*_applied(wanted, observed), *made]


def _applied(wanted: list[tuple[Resource, Obj]], observed: Observed) -> list[Action]:
    return [Apply(resource, body) for resource, body in wanted if not _is_current(resource, body, observed)]


def _is_current(resource: Resource, body: Obj, observed: Observed) -> bool:
    owned_object = observed.owned.get((resource.kind, body["metadata"]["name"]))
    return owned_object is not None and owned_object.digest == body["metadata"]["annotations"][names.HASH]


def _ensure_driver(job: Job, observed: Observed, settings: Settings, plan: Plan, now: float) -> list[Action]:
    """Create a driver pod if none is alive.

    An old driver on an unreachable node may still run; the higher term of its successor fences it.
    """
    pods = observed.role("driver")
    actions: list[Action] = [
        Delete(PODS, pod.namespace, pod.name, pod.uid, 0 if pod.node in observed.nodes.gone else None)
        for pod in pods
        if pod.node in observed.nodes.gone or (pod.finished and not pod.deleting_since)
    ]
    if any(pod.alive and pod.node not in observed.nodes.gone for pod in pods):
        return actions
    failed = [pod for pod in pods if pod.finished]
    if failed:
        wait_s = max(pod.created for pod in failed) + _DRIVER_PAUSE_S - now
        if wait_s > 0:
            plan.requeue_after(wait_s)
            return actions
    stated = (job.status.get("operator") or {}).get("driverPod") or ""
    last = max([pod.incarnation for pod in pods] + [names.incarnation_of(stated) if stated else -1])
    plan.events.append(
        PlannedEvent("Normal", "DriverCreated", f"creating {names.driver_pod(job.name, last + 1)}")
    )
    return [*actions, Create(PODS, driver_pod(job, last + 1, settings.image))]


def _driver_digest(job: Job, observed: Observed) -> str:
    owned_object = observed.owned.get(("ConfigMap", names.driver_map(job.name)))
    text = owned_object.text("driver.json") if owned_object else ""
    return maps.digest(text) if text else ""


def _announce_driver(driver: str, slots: list[PodRecord]) -> list[Action]:
    """Update the driver annotation of slot pods that have another `driver.json`.

    A kubelet updates mounted ConfigMaps about once a minute, but immediately when the pod changes.
    """
    if not driver:
        return []
    body = {"metadata": {"annotations": {names.DRIVER: driver}}}
    return [
        Patch(PODS, pod.namespace, pod.name, body)
        for pod in slots
        if pod.alive and pod.node and pod.driver != driver
    ]


def _update_slots_map(job: Job, observed: Observed, file: SlotsFile, plan: Plan, now: float) -> bool:
    """Write `slots.json` and `driver.crt` if they changed.

    Returns False if they changed but were written less than SLOTS_PERIOD_S ago: the write is deferred.
    """
    owned_object = observed.owned.get(("ConfigMap", names.slots_map(job.name)))
    text = file.text()
    before = (owned_object.text("slots.json"), owned_object.text("driver.crt")) if owned_object else None
    certificate = observed.driver_crt or (before[1] if before else "")
    if before == (text, certificate):
        return True
    wait_s = observed.slots_written_at + SLOTS_PERIOD_S - now
    if wait_s > 0:
        plan.requeue_after(wait_s)
        return False
    plan.add_step(Apply(CONFIG_MAPS, maps.slots_map(job, text, certificate)), needed=True)
    return True


def _update_status(
    job: Job, phase: lifecycle.Phase, slots: SlotsPlan, observed: Observed, plan: Plan, now: float
) -> None:
    """Write `status` if it changed, and record the Events of condition changes."""
    end = lifecycle.end_of(job, now)
    drivers = sorted(observed.role("driver"), key=lambda pod: pod.incarnation)
    newest: PodRecord | None = drivers[-1] if drivers else None
    conditions = conditions_of(job, phase, slots, newest, end, now)
    operator = {
        "slots": {"wanted": slots.wanted, "bound": slots.bound, "ready": slots.ready},
        "driverPod": newest.name if newest else (job.status.get("operator") or {}).get("driverPod", ""),
        "refusals": answers.refusals(job, [*slots.refusals, *observed.refused], observed.granted, now),
        "quarantined": answers.grants(job, observed.granted, observed.refused, now),
        "avoid": list(slots.avoid[:_MAX_AVOIDED]),
    }
    status = {
        "observedGeneration": job.generation,
        "state": state_of(job, phase, conditions),
        "nodes": f"{slots.ready}/{slots.wanted}",
        "conditions": rendered(job, conditions, now),
        "operator": operator,
        **lifecycle.times(job, phase, has_slots=bool(slots.create or observed.role("slot")), now=now),
    }
    plan.events += transitions(job, conditions)
    if all(job.status.get(key) == value for key, value in status.items()):
        return
    wait_s = observed.status_written_at + COUNTS_PERIOD_S - now
    if wait_s > 0 and _without_slot_counts(job.status) == _without_slot_counts({**job.status, **status}):
        plan.requeue_after(wait_s)
        return
    body = {"metadata": {"name": job.name, "namespace": job.namespace}, "status": status}
    plan.add_step(Apply(TRAINING_JOBS, body, "status"))


def _without_slot_counts(status: Obj) -> Obj:
    """Return the status without slot counts, which change with every pod."""
    operator = {key: value for key, value in (status.get("operator") or {}).items() if key != "slots"}
    conditions = [(one["type"], one["status"], one["reason"]) for one in status.get("conditions") or ()]
    rest = {key: value for key, value in status.items() if key != "nodes"}
    return {**rest, "operator": operator, "conditions": conditions}
