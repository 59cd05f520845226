"""Which slot pods to create and which to delete."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from megascale_operator.kube.resources import PODS, Obj
from megascale_operator.reconcile.departures import conviction, departure_of
from megascale_operator.reconcile.job import Job, Requests
from megascale_operator.reconcile.mark import mark_of
from megascale_operator.reconcile.observed import Observed
from megascale_operator.reconcile.plan import Action, Delete
from megascale_operator.reconcile.records import NodeRecord, Nodes, PodRecord
from megascale_operator.reconcile.slot_pod import NewSlot
from megascale_operator.reconcile.slots_file import SlotsFile

FORCE_AFTER_VERDICT_S: Final = 120.0
"""In mode Enforce, a terminating pod on a quarantined node is force-deleted after this time."""
_RECENT_S: Final = 600.0
_MAX_FAILED_CHECKS: Final = 16
_FREE_FAILURES: Final = 2
_MAX_DELAY_S: Final = 300.0
_CHECK_MEMORY_S: Final = 3600.0


@dataclass(slots=True)
class SlotsPlan:
    """The slot pods to create and delete.

    Attributes:
        wanted: number of slots there should be.
        bound: number of live slot pods that have a node.
        ready: number of live slot pods that are ready.
        avoid: nodes that new pods must not be placed on.
        refusals: requests that are not granted, as in `status.operator.refusals` but without `time`.
        requeue_s: seconds after which to plan again, None if there is nothing to wait for.
    """

    wanted: int
    bound: int = 0
    ready: int = 0
    avoid: tuple[str, ...] = ()
    create: list[NewSlot] = field(default_factory=list)
    delete: list[Action] = field(default_factory=list)
    refusals: list[Obj] = field(default_factory=list)
    requeue_s: float | None = None


def plan_slots(job: Job, requests: Requests, observed: Observed, file: SlotsFile, now: float) -> SlotsPlan:
    """Compute the slot pods to create and delete; `file` is the new `slots.json`."""
    pods = observed.role("slot")
    failed = {*failed_checks(file, now), *(pod.node for pod in pods if conviction(pod))}
    plan = SlotsPlan(_wanted(job, requests), avoid=tuple(sorted({*requests.avoid, *failed})))
    plan.bound = sum(1 for pod in pods if pod.alive and pod.node)
    plan.ready = sum(1 for pod in pods if pod.alive and pod.ready)
    if requests.slots is not None and requests.slots > plan.wanted:
        plan.refusals.append(
            _refusal(f"{requests.slots} slots requested, but this job can have at most {plan.wanted}")
        )
    restarting = {pod for pod, _ in requests.restart}
    for pod in pods:
        action = deletion_of(pod, observed.nodes, requests, now)
        if action:
            plan.delete.append(action)
    staying = [pod for pod in pods if _occupies(pod, observed.nodes, requests, restarting)]
    missing = plan.wanted - len(staying)
    if missing <= 0:
        return plan
    if len(failed) >= _MAX_FAILED_CHECKS:
        message = f"{len(failed)} nodes failed their check within an hour: no new slots are created for now"
        plan.refusals.append(_refusal(message))
        plan.requeue_s = 60.0
        return plan
    wait_s = _delay(file, now)
    if wait_s > 0:
        plan.requeue_s = wait_s
        return plan
    taken = {pod.slot for pod in staying}
    plan.create = list(_fill(missing, taken, file, plan.avoid))
    return plan


def deletion_of(pod: PodRecord, nodes: Nodes, requests: Requests, now: float) -> Action | None:
    """Return the deletion of the pod, None if the pod stays or is already being deleted."""
    node = nodes.get(pod.node)
    if pod.node in nodes.gone or (node and node.out_of_service):
        return Delete(PODS, pod.namespace, pod.name, pod.uid, 0)
    if pod.deleting_since:
        overdue = node is not None and now - _enforced_since(node, now) >= FORCE_AFTER_VERDICT_S
        return Delete(PODS, pod.namespace, pod.name, pod.uid, 0) if overdue else None
    if pod.finished:
        return Delete(PODS, pod.namespace, pod.name, pod.uid)
    leaving = departure_of(pod, nodes, requests)
    if leaving and leaving.reason.startswith(("released", "restart", "check", "failed")):
        return Delete(PODS, pod.namespace, pod.name, pod.uid)
    return None


def failed_checks(file: SlotsFile, now: float) -> tuple[str, ...]:
    """Return the nodes that a check before joining convicted in the last hour."""
    nodes = {
        str(entry["node"])
        for entry in file.gone
        if str(entry["reason"]).startswith("check") and now - float(entry["at"]) < _CHECK_MEMORY_S
    }
    return tuple(sorted(nodes))


def _enforced_since(node: NodeRecord, now: float) -> float:
    """Return when the operator tainted the node (Unix seconds), `now` if it did not."""
    mark = mark_of(node)
    if mark is None or not node.tainted or "taint" not in mark.set:
        return now
    return mark.since or now


def _wanted(job: Job, requests: Requests) -> int:
    return job.slots_by_spec if requests.slots is None else min(requests.slots, job.max_slots)


def _occupies(pod: PodRecord, nodes: Nodes, requests: Requests, restarting: set[str]) -> bool:
    """Return whether the pod occupies its slot.

    A pod that is being restarted does until it is gone, so that its successor fits on the same node.
    """
    if pod.name in restarting and not pod.finished:
        return True
    return pod.alive and departure_of(pod, nodes, requests) is None


def _delay(file: SlotsFile, now: float) -> float:
    """Return the seconds to wait before creating pods; grows with the pods that failed within 10 minutes."""
    failures = [
        float(entry["at"])
        for entry in file.gone
        if str(entry["reason"]).startswith(("failed", "check")) and now - float(entry["at"]) < _RECENT_S
    ]
    beyond = len(failures) - _FREE_FAILURES
    if beyond <= 0:
        return 0.0
    return max(failures) + min(_MAX_DELAY_S, 2.0 ** min(beyond, 10)) - now


def _fill(missing: int, taken: set[int], file: SlotsFile, avoid: tuple[str, ...]) -> list[NewSlot]:
    last_gone = {int(entry["slot"]): entry for entry in file.gone}
    made: list[NewSlot] = []
    slot = 0
    while len(made) < missing:
        if slot not in taken:
            entry = last_gone.get(slot, {})
            node = str(entry.get("node", "")) if str(entry.get("reason", "")).startswith("restart") else ""
            incarnation = file.incarnations.get(slot, -1) + 1
            made.append(NewSlot(slot, incarnation, node if node not in avoid else ""))
        slot += 1
    return made


def _refusal(reason: str) -> Obj:
    return {"request": "slots", "node": "", "incident": "", "reason": reason}
