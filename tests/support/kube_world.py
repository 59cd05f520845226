"""A cluster in memory: applies plans, and lets tests play scheduler, kubelet and driver."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field
from typing import Any

from megascale_operator.kube.clock import stamp
from megascale_operator.kube.resources import PODS, TRAINING_JOBS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.job import Job
from megascale_operator.reconcile.lifecycle import delete
from megascale_operator.reconcile.observed import Observed, Settings
from megascale_operator.reconcile.plan import Apply, Create, Delete, DeletePods, Patch, Plan
from megascale_operator.reconcile.reconcile import reconcile
from megascale_operator.reconcile.records import (
    NodeRecord,
    Nodes,
    OwnedObject,
    PodRecord,
    node_record,
    owned_object,
    pod_record,
)

from megascale.job.loader import from_mapping

START = 1_800_000_000.0


def job_object(name: str = "q", **spec: Any) -> Obj:
    """A TrainingJob of two nodes and one spare, as the API server would store it."""
    command = {"runtime": {"command": {"args": ["python", "train.py"]}}, "health": {"checkSlots": False}}
    return {
        "apiVersion": "megascale.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {
            "name": name, "namespace": "team", "uid": "uid-job", "generation": 1, "resourceVersion": "1",
            "creationTimestamp": stamp(START),
        },
        "spec": {"nodes": 2, "spareNodes": 1, "steps": 100, **command, **spec},
    }  # fmt: skip


def node_object(name: str, **changes: Any) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "1",
            **changes.pop("metadata", {}),
        },
        "spec": changes.pop("spec", {}),
        "status": {"conditions": [{"type": "Ready", "status": changes.pop("ready", "True")}]},
    }


def node(name: str, **changes: Any) -> NodeRecord:
    return node_record(node_object(name, **changes))


@dataclass
class World:
    """One job and its objects. `tick` reconciles once; `settle` until nothing is left to do."""

    job: Obj = field(default_factory=job_object)
    settings: Settings = field(default_factory=lambda: Settings("image:1"))
    now: float = START
    pods: dict[str, Obj] = field(default_factory=dict)
    nodes: dict[str, Obj] = field(default_factory=dict)
    owned: dict[tuple[str, str], Obj] = field(default_factory=dict)
    ended: list[PodRecord] = field(default_factory=list)
    gone_nodes: set[str] = field(default_factory=set)
    slots_written_at: float = 0.0
    status_written_at: float = 0.0
    created: list[str] = field(default_factory=list)
    driver_crt: str = ""
    granted: tuple[tuple[str, str], ...] = ()
    refused: tuple[Obj, ...] = ()
    deleted: bool = False
    _numbers: Any = field(default_factory=lambda: itertools.count(2))

    def plan(self) -> Plan:
        """Return the plan of a reconcile without applying it."""
        if self.job["metadata"].get("deletionTimestamp"):
            pods = tuple(pod_record(pod) for pod in self.pods.values())
            return delete(self.job, pods, self.now)
        job = Job(self.job, from_mapping({key: value for key, value in self.job.items() if key != "status"}))
        observed = Observed(
            pods=tuple(pod_record(pod) for pod in self.pods.values()),
            nodes=Nodes(
                {name: node_record(one) for name, one in self.nodes.items()}, frozenset(self.gone_nodes)
            ),
            owned={key: self._owned(owned_object) for key, owned_object in self.owned.items()},
            ended=tuple(self.ended),
            ca_pem="CA",
            driver_crt=self.driver_crt,
            granted=self.granted,
            refused=self.refused,
            slots_written_at=self.slots_written_at,
            status_written_at=self.status_written_at,
        )
        return reconcile(job, observed, self.settings, self.now)

    def _owned(self, obj: Obj) -> OwnedObject:
        return owned_object(obj)

    def tick(self) -> Plan:
        plan = self.plan()
        for action in plan.actions:
            self._do(action)
        return plan

    def settle(self, most: int = 20) -> None:
        """Reconcile once a second until there is nothing to do."""
        for _ in range(most):
            self.now += 1.0
            plan = self.tick()
            if not plan.actions and (plan.requeue_s is None or plan.requeue_s > 2.0):
                return
        raise AssertionError(f"still not settled after {most} reconciles: {self.plan().actions}")

    def _do(self, action: Any) -> None:
        match action:
            case Create(resource, body):
                self._create(resource.kind, body)
            case Apply(resource, body, subresource):
                self._apply(resource.kind, body, subresource)
            case Patch(resource, _, name, patch):
                if resource is TRAINING_JOBS:
                    self._patch(patch)
                else:
                    self.pods[name]["metadata"]["annotations"] |= patch["metadata"]["annotations"]
            case Delete(resource, _, name, uid, grace_s):
                self._delete(resource.kind, name, uid, grace_s)
            case DeletePods(_, selector):
                wanted = dict(term.split("=") for term in selector.split(","))
                for pod in list(self.pods.values()):
                    if wanted.items() <= pod["metadata"]["labels"].items():
                        self._delete("Pod", pod["metadata"]["name"], pod["metadata"]["uid"], None)

    def _create(self, kind: str, body: Obj) -> None:
        body = self._stored(body)
        name = body["metadata"]["name"]
        if kind == "Pod":
            assert name not in self.created, f"{name} was created before"
            self.created.append(name)
            body["status"] = {"phase": "Pending"}
            self.pods[name] = body
        else:
            self.owned.setdefault((kind, name), body)

    def _apply(self, kind: str, body: Obj, subresource: str) -> None:
        if kind == "TrainingJob":
            assert subresource == "status"
            self.status_written_at = self.now
            self.job.setdefault("status", {}).update(copy.deepcopy(body["status"]))
            return
        if body["metadata"]["name"] == names.slots_map(self.job["metadata"]["name"]):
            self.slots_written_at = self.now
            self.ended.clear()
        self.owned[kind, body["metadata"]["name"]] = self._stored(body)

    def _stored(self, body: Obj) -> Obj:
        stored = copy.deepcopy(body)
        number = next(self._numbers)
        stored["metadata"] |= {
            "uid": f"uid-{number}", "resourceVersion": str(number), "creationTimestamp": stamp(self.now),
        }  # fmt: skip
        return stored

    def _patch(self, patch: Any) -> None:
        meta = self.job["metadata"]
        if isinstance(patch, list):
            meta["finalizers"].remove(names.FINALIZER)
            self.deleted = not meta["finalizers"]
            return
        changes = patch["metadata"]
        if "finalizers" in changes:
            meta["finalizers"] = changes["finalizers"]
        meta["annotations"] = {**(meta.get("annotations") or {}), **changes.get("annotations", {})}

    def _delete(self, kind: str, name: str, uid: str, grace_s: int | None) -> None:
        if kind == "TrainingJob":
            self.job["metadata"]["deletionTimestamp"] = stamp(self.now)
            return
        pod = self.pods[name]
        assert pod["metadata"]["uid"] == uid
        if (
            grace_s == 0
            or not pod["spec"].get("nodeName")
            or pod["status"]["phase"] in ("Succeeded", "Failed")
        ):
            self.remove(name)
        else:
            pod["metadata"].setdefault("deletionTimestamp", stamp(self.now))

    def remove(self, name: str) -> None:
        """Remove a pod, as the API server does after its grace period."""
        pod = pod_record(self.pods.pop(name))
        if pod.role == "slot":
            self.ended.append(pod)

    def kubelet(self, *, remove_deleted: bool = True) -> None:
        """Bind and run pending pods, and end those being deleted."""
        job = self.job["metadata"]["name"]
        for name, pod in list(self.pods.items()):
            if pod["metadata"].get("deletionTimestamp"):
                if remove_deleted:
                    self.remove(name)
                continue
            if pod["status"]["phase"] == "Pending":
                taken = {one["spec"].get("nodeName") for one in self.pods.values()}
                free = [one for one in self.nodes if one not in taken and one not in avoided(pod)]
                if free:
                    pod["spec"]["nodeName"] = min(free, key=lambda one: (one not in preferred(pod), one))
                    self.run(name)
        assert all(name.startswith(job) for name in self.pods)

    def run(self, name: str, **status: Any) -> None:
        ready = {"type": "Ready", "status": "True"}
        before = self.pods[name]["status"].get("conditions", [])
        kept = [one for one in before if one["type"] == "DisruptionTarget"]
        self.pods[name]["status"] = {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [ready, *kept],
            **status,
        }

    def disrupt(self, name: str, reason: str) -> None:
        conditions = self.pods[name]["status"].setdefault("conditions", [])
        conditions.append({"type": "DisruptionTarget", "status": "True", "reason": reason})

    def driver_reports(self, **fields: Any) -> None:
        driver = self.job.setdefault("status", {}).setdefault("driver", {})
        driver.update(
            {"observedGeneration": self.job["metadata"]["generation"], "updatedAt": stamp(self.now), **fields}
        )

    def edit(self, **spec: Any) -> None:
        self.job["spec"].update(spec)
        self.job["metadata"]["generation"] += 1

    def slots(self) -> list[Obj]:
        return [pod for pod in self.pods.values() if pod["metadata"]["labels"][names.ROLE] == "slot"]

    def condition(self, kind: str) -> str:
        return next(one["status"] for one in self.job["status"]["conditions"] if one["type"] == kind)


def avoided(pod: Obj) -> set[str]:
    """Return the nodes that the pod's required affinity excludes."""
    required = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = required.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return {value for term in terms for field in term.get("matchFields", ()) for value in field["values"]}


def preferred(pod: Obj) -> set[str]:
    requests = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = requests.get("preferredDuringSchedulingIgnoredDuringExecution", [])
    return {
        value for term in terms for field in term["preference"]["matchFields"] for value in field["values"]
    }


__all__ = ["PODS", "World", "avoided", "job_object", "node", "node_object", "preferred"]
