"""Projections of watched objects: the fields that the controllers use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from megascale_operator.kube.clock import unix_s
from megascale_operator.kube.informer import annotations_of, labels_of
from megascale_operator.kube.resources import Obj, name_of, namespace_of
from megascale_operator.reconcile import names

_DRAIN_TAINTS: Final = ("ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted")
OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod that the operator created.

    Attributes:
        version: resourceVersion.
        slot: slot number, -1 for other roles.
        incarnation: number at the end of the pod's name.
        created: creation time in Unix seconds.
        node: node that the pod is bound to, "" if it is not.
        ready: whether the Ready condition is True.
        deleting_since: deletion time in Unix seconds, 0 if the pod is not being deleted.
        disruption: reason of the DisruptionTarget condition, "" if there is none.
        exit: last exit code of the main container, None if it has not ended.
        restarts: restart count of the main container.
        looping: whether the main container is in CrashLoopBackOff.
        check: termination message of the init container, the check before joining.
        failed_check: whether the init container's exit code is not 0.
        reason: `status.reason`, such as Evicted.
        owner_check: name of the NodeCheck that the pod belongs to, "" for pods of jobs.
        target: node that a check pod checks.
        message: termination message of the main container.
        driver: digest of the `driver.json` in the pod's driver annotation.
    """

    version: str
    namespace: str
    name: str
    uid: str
    job: str
    role: str
    slot: int
    incarnation: int
    created: float
    node: str
    phase: str
    ip: str
    ready: bool
    deleting_since: float
    disruption: str
    exit: int | None
    restarts: int
    looping: bool
    check: str
    failed_check: bool
    reason: str
    owner_check: str
    target: str
    message: str
    driver: str

    @property
    def finished(self) -> bool:
        return self.phase in ("Succeeded", "Failed")

    @property
    def alive(self) -> bool:
        """Neither finished nor being deleted."""
        return not self.finished and not self.deleting_since


def pod_record(pod: Obj) -> PodRecord:
    meta, status = pod["metadata"], pod.get("status") or {}
    labels = labels_of(pod)
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    main = _state(status.get("containerStatuses"))
    first = _state(status.get("initContainerStatuses"))
    slot = labels.get(names.SLOT, "")
    disruption = conditions.get("DisruptionTarget") or {}
    return PodRecord(
        version=str(meta["resourceVersion"]),
        namespace=namespace_of(pod),
        name=name_of(pod),
        uid=meta["uid"],
        job=labels.get(names.JOB, ""),
        role=labels.get(names.ROLE, ""),
        slot=int(slot) if slot.isdigit() else -1,
        incarnation=names.incarnation_of(name_of(pod)),
        created=unix_s(meta.get("creationTimestamp")),
        node=(pod.get("spec") or {}).get("nodeName") or "",
        phase=status.get("phase") or "Pending",
        ip=status.get("podIP") or "",
        ready=(conditions.get("Ready") or {}).get("status") == "True",
        deleting_since=unix_s(meta.get("deletionTimestamp")) if meta.get("deletionTimestamp") else 0.0,
        disruption=str(disruption.get("reason") or "") if disruption.get("status") == "True" else "",
        exit=main.exit,
        restarts=main.restarts,
        looping=main.looping,
        check=first.message,
        failed_check=bool(first.exit),
        reason=status.get("reason") or "",
        owner_check=labels.get(names.CHECK, ""),
        target=_target(pod) if names.CHECK in labels else "",
        message=main.message,
        driver=annotations_of(pod).get(names.DRIVER, ""),
    )


def _target(pod: Obj) -> str:
    """Return the node that a check pod's affinity requires."""
    affinity = ((pod.get("spec") or {}).get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for one in term.get("matchFields") or ():
            return str(one["values"][0])
    return ""


@dataclass(frozen=True, slots=True)
class _Ended:
    exit: int | None = None
    message: str = ""
    restarts: int = 0
    looping: bool = False


def _state(statuses: list[Obj] | None) -> _Ended:
    if not statuses:
        return _Ended()
    status = statuses[0]
    state, last = status.get("state") or {}, status.get("lastState") or {}
    ended = state.get("terminated") or last.get("terminated") or {}
    waiting = (state.get("waiting") or {}).get("reason") or ""
    return _Ended(
        ended.get("exitCode"), ended.get("message") or "", status.get("restartCount") or 0,
        waiting == "CrashLoopBackOff",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node of the cluster.

    Attributes:
        version: resourceVersion.
        ready: whether the Ready condition is True.
        out_of_service: whether it has the out-of-service taint.
        draining: whether an autoscaler has tainted it for removal.
        tainted: whether it has the quarantine taint.
        taints: taint keys, in order.
        labels: sorted (key, value) pairs.
        annotated: whether it has any annotation.
        quarantine: quarantine annotation (JSON), "" if there is none.
        history: quarantine history annotation (JSON list of Unix seconds), "" if there is none.
    """

    version: str
    name: str
    uid: str
    ready: bool
    unschedulable: bool
    out_of_service: bool
    draining: bool
    tainted: bool
    taints: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    annotated: bool
    quarantine: str
    history: str

    def mark(self) -> dict[str, Any] | None:
        """Return the parsed quarantine annotation, None if there is none, {} if it is malformed."""
        if not self.quarantine:
            return None
        try:
            mark = json.loads(self.quarantine)
        except ValueError:
            return {}
        return mark if isinstance(mark, dict) else {}


def node_record(node: Obj) -> NodeRecord:
    spec, annotations = node.get("spec") or {}, annotations_of(node)
    conditions = (node.get("status") or {}).get("conditions") or ()
    keys = tuple(taint["key"] for taint in spec.get("taints") or ())
    return NodeRecord(
        version=str(node["metadata"]["resourceVersion"]),
        name=name_of(node),
        uid=node["metadata"]["uid"],
        ready=any(one["type"] == "Ready" and one["status"] == "True" for one in conditions),
        unschedulable=bool(spec.get("unschedulable")),
        out_of_service=OUT_OF_SERVICE in keys,
        draining=any(key in keys for key in _DRAIN_TAINTS),
        tainted=names.TAINT in keys,
        taints=keys,
        labels=tuple(sorted(labels_of(node).items())),
        annotated=bool(node["metadata"].get("annotations")),
        quarantine=annotations.get(names.QUARANTINE, ""),
        history=annotations.get(names.QUARANTINE_HISTORY, ""),
    )


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes by name, and the names of nodes that the API server does not have (`gone`)."""

    records: Mapping[str, NodeRecord] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    def get(self, name: str) -> NodeRecord | None:
        return self.records.get(name)


def same_for_jobs(before: NodeRecord, after: NodeRecord) -> bool:
    """Return whether all fields that job reconciles use are equal; kubelets update nodes all the time."""
    return (before.ready, before.out_of_service, before.draining, before.quarantine) == (
        after.ready,
        after.out_of_service,
        after.draining,
        after.quarantine,
    )


@dataclass(frozen=True, slots=True)
class OwnedObject:
    """A ConfigMap, ServiceAccount, Role or RoleBinding of a job; `data` is kept for _READ_MAPS only."""

    version: str
    namespace: str
    name: str
    job: str
    digest: str
    data: tuple[tuple[str, str], ...] = ()

    def text(self, key: str) -> str:
        return dict(self.data).get(key, "")


_READ_MAPS: Final = ("-driver", "-slots")


def owned_object(obj: Obj) -> OwnedObject:
    name = name_of(obj)
    data: Mapping[str, str] = (obj.get("data") or {}) if name.endswith(_READ_MAPS) else {}
    return OwnedObject(
        version=str(obj["metadata"]["resourceVersion"]),
        namespace=namespace_of(obj),
        name=name,
        job=labels_of(obj).get(names.JOB, ""),
        digest=annotations_of(obj).get(names.HASH, ""),
        data=tuple(sorted(data.items())),
    )


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A TrainingJob as a whole, without managedFields."""

    version: str
    namespace: str
    name: str
    obj: Obj


def job_record(obj: Obj) -> JobRecord:
    meta = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return JobRecord(
        str(obj["metadata"]["resourceVersion"]), namespace_of(obj), name_of(obj), {**obj, "metadata": meta}
    )


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """A NodeCheck as a whole."""

    version: str
    name: str
    obj: Obj


def check_record(obj: Obj) -> CheckRecord:
    return CheckRecord(str(obj["metadata"]["resourceVersion"]), name_of(obj), obj)
