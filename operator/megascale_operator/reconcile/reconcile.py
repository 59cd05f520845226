"""One look at a job: what is there, what should be, what to do. Pure."""

from __future__ import annotations

from typing import Final

from megascale_operator.kube.clock import stamp
from megascale_operator.kube.resources import CONFIG_MAPS, PODS, TRAINING_JOBS, Obj, Resource
from megascale_operator.reconcile import lifecycle, maps, names
from megascale_operator.reconcile.conditions import conditions_of, state_of, transitions, written
from megascale_operator.reconcile.driver_pod import driver_pod
from megascale_operator.reconcile.job import Job, requests_of
from megascale_operator.reconcile.observed import Observed, Settings
from megascale_operator.reconcile.plan import Action, Apply, Create, Delete, Note, Patch, Plan
from megascale_operator.reconcile.rbac import binding, rights
from megascale_operator.reconcile.records import PodRecord
from megascale_operator.reconcile.slot_pod import SlotPods
from megascale_operator.reconcile.slots import SlotsPlan, plan_slots
from megascale_operator.reconcile.slots_file import SlotsFile, next_file

SLOTS_PERIOD_S: Final = 1.0
"""`slots.json` is written at most this often."""
COUNTS_PERIOD_S: Final = 2.0
"""Counts of slots in the status are brought up to date at most this often."""
_LOOK_AGAIN_S: Final = 30.0
_DRIVER_PAUSE_S: Final = 10.0
_MOST_REFUSALS: Final = 20
_MOST_QUARANTINED: Final = 64
_IN_PODS: Final = (
    "spec.checkpoint.uri is not set and the operator has no --checkpoint-root: checkpoints stay in the pods "
    "and are lost with them, so that a lost node sends the job back to its first step"
)


def reconcile(job: Job, observed: Observed, settings: Settings, now: float) -> Plan:
    """What to do about a job of ours; `managedBy` was looked at before."""
    phase = lifecycle.phase_of(job, observed.pods, now)
    if phase == "deleting":
        return lifecycle.delete(job.obj, observed.pods, now)
    plan = Plan()
    if names.FINALIZER not in (job.obj["metadata"].get("finalizers") or ()):
        plan.then(_add_finalizer(job))
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
        lifecycle.watch_deadline(job, plan, now)
        plan.again(_LOOK_AGAIN_S)
    else:
        _publish(job, observed, file, plan, now)
        lifecycle.tear_down(job, observed, plan)
    _report(job, phase, slots, observed, plan, now)
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
    """What an active job needs: objects, its driver, its slots.

    Numbers of new pods are written down before the pods are made: no name is ever used twice.
    """
    plan.then(*_objects(job, observed, settings))
    plan.then(*_applied([binding(job)], observed), *_driver(job, observed, settings, plan, now))
    written = _publish(
        job, observed, file.with_new({one.slot: one.incarnation for one in slots.make}), plan, now
    )
    plan.then(*slots.remove)
    driver = _driver_digest(job, observed)
    plan.then(*_announce_driver(driver, observed.role("slot")))
    if slots.make and written:
        pods = SlotPods(job, settings.image, slots.avoid, driver)
        plan.then(*(Create(PODS, pods.make(slot)) for slot in slots.make))
        plan.notes.append(Note("Normal", "SlotsCreated", f"creating {len(slots.make)} slot pods"))
        if not job.started_at and not job.spec.checkpoint.uri and job.spec.runtime.megatron:
            plan.notes.append(Note("Warning", "CheckpointsInPods", _IN_PODS))
    if slots.again_s is not None:
        plan.again(slots.again_s)


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


def _driver(job: Job, observed: Observed, settings: Settings, plan: Plan, now: float) -> list[Action]:
    """Make a driver pod if none is alive. An old one on a silent node may still run: the term fences it."""
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
            plan.again(wait_s)
            return actions
    stated = (job.status.get("operator") or {}).get("driverPod") or ""
    last = max([pod.incarnation for pod in pods] + [names.incarnation_of(stated) if stated else -1])
    plan.notes.append(Note("Normal", "DriverCreated", f"creating {names.driver_pod(job.name, last + 1)}"))
    return [*actions, Create(PODS, driver_pod(job, last + 1, settings.image))]


def _driver_digest(job: Job, observed: Observed) -> str:
    owned_object = observed.owned.get(("ConfigMap", names.driver_map(job.name)))
    text = owned_object.text("driver.json") if owned_object else ""
    return maps.digest(text) if text else ""


def _announce_driver(driver: str, slots: list[PodRecord]) -> list[Action]:
    """Touch pods whose `driver.json` is of an earlier driver.

    A kubelet brings mounted ConfigMaps up to date about once a minute, but at once when the pod changes.
    """
    if not driver:
        return []
    body = {"metadata": {"annotations": {names.DRIVER: driver}}}
    return [
        Patch(PODS, pod.namespace, pod.name, body)
        for pod in slots
        if pod.alive and pod.node and pod.driver != driver
    ]


def _publish(job: Job, observed: Observed, file: SlotsFile, plan: Plan, now: float) -> bool:
    """Write `slots.json` and `driver.crt` if they changed; False = not yet, the last time was too recent."""
    owned_object = observed.owned.get(("ConfigMap", names.slots_map(job.name)))
    text = file.text()
    before = (owned_object.text("slots.json"), owned_object.text("driver.crt")) if owned_object else None
    certificate = observed.driver_crt or (before[1] if before else "")
    if before == (text, certificate):
        return True
    wait_s = observed.slots_written_at + SLOTS_PERIOD_S - now
    if wait_s > 0:
        plan.again(wait_s)
        return False
    plan.then(Apply(CONFIG_MAPS, maps.slots_map(job, text, certificate)), needed=True)
    return True


def _report(
    job: Job, phase: lifecycle.Phase, slots: SlotsPlan, observed: Observed, plan: Plan, now: float
) -> None:
    """Bring the status up to date, if it is not."""
    end = lifecycle.end_of(job, now)
    drivers = sorted(observed.role("driver"), key=lambda pod: pod.incarnation)
    newest: PodRecord | None = drivers[-1] if drivers else None
    conditions = conditions_of(job, phase, slots, newest, end, now)
    operator = {
        "slots": {"wanted": slots.wanted, "bound": slots.bound, "ready": slots.ready},
        "driverPod": newest.name if newest else (job.status.get("operator") or {}).get("driverPod", ""),
        "refusals": _refusals(job, [*slots.refusals, *observed.refused], now),
        "quarantined": [
            {"node": node, "incident": incident} for node, incident in observed.granted[:_MOST_QUARANTINED]
        ],
        "avoid": list(slots.avoid[:_MOST_QUARANTINED]),
    }
    status = {
        "observedGeneration": job.generation,
        "state": state_of(job, phase, conditions),
        "nodes": f"{slots.ready}/{slots.wanted}",
        "conditions": written(job, conditions, now),
        "operator": operator,
        **lifecycle.times(job, phase, has_slots=bool(slots.make or observed.role("slot")), now=now),
    }
    plan.notes += transitions(job, conditions)
    if all(job.status.get(key) == value for key, value in status.items()):
        return
    wait_s = observed.status_written_at + COUNTS_PERIOD_S - now
    if wait_s > 0 and _essence(job.status) == _essence({**job.status, **status}):
        plan.again(wait_s)
        return
    body = {"metadata": {"name": job.name, "namespace": job.namespace}, "status": status}
    plan.then(Apply(TRAINING_JOBS, body, "status"))


def _essence(status: Obj) -> Obj:
    """The status without counts of slots, which change with every pod that comes up."""
    operator = {key: value for key, value in (status.get("operator") or {}).items() if key != "slots"}
    conditions = [(one["type"], one["status"], one["reason"]) for one in status.get("conditions") or ()]
    rest = {key: value for key, value in status.items() if key != "nodes"}
    return {**rest, "operator": operator, "conditions": conditions}


def _refusals(job: Job, wanted: list[Obj], now: float) -> list[Obj]:
    """Refusals with the time at which each began."""
    known = (job.status.get("operator") or {}).get("refusals") or ()
    found = []
    for refusal in wanted[:_MOST_REFUSALS]:
        same = next((one for one in known if all(one.get(key) == refusal[key] for key in refusal)), None)
        found.append({**refusal, "time": same["time"] if same else stamp(now)})
    return found
