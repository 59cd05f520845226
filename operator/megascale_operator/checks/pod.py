"""The pod that checks one node."""

from __future__ import annotations

from typing import Final

from megascale_operator.crd.nodecheck import NodeCheckSpec
from megascale_operator.kube.resources import NODE_CHECKS, PODS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.pods import (
    CONTAINER_SECURITY,
    POD_SECURITY,
    WORK,
    empty_dir,
    field_env,
    mount,
    plain,
)

ROUND: Final = "megascale.io/round"
_GRACE_S: Final = 5


def check_pod(check: Obj, spec: NodeCheckSpec, node: str, number: int, namespace: str, image: str) -> Obj:
    """Return the pod for check round `number` of `node`; the kubelet stops it after the spec's timeout."""
    name = check["metadata"]["name"]
    container: Obj = {
        "name": "check",
        "image": spec.image or image,
        "workingDir": WORK,
        "securityContext": dict(CONTAINER_SECURITY),
        "command": ["python", "-m", "megascale.diagnose"],
        "args": ["--light", "--local", "--json", "--termination-log", "/dev/termination-log", "--name", node],
        "env": [field_env("NODE_NAME", "spec.nodeName")],
        "volumeMounts": [
            mount("work", WORK),
            mount("shm", "/dev/shm"),  # noqa: S108 - in the container
            mount("tmp", "/tmp"),  # noqa: S108 - in the container
        ],
    }
    if spec.resources is not None:
        container["resources"] = plain(spec.resources)
    owner = {
        "apiVersion": NODE_CHECKS.api_version, "kind": NODE_CHECKS.kind, "name": name,
        "uid": check["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    labels = {names.MANAGED_BY: names.OPERATOR, names.CHECK: name, names.ROLE: "check"}
    meta = {
        "name": f"{names.check_pod(name, node)}-{number}",
        "namespace": namespace,
        "labels": labels,
        "annotations": {ROUND: str(number)},
        "ownerReferences": [owner],
    }
    return {
        "apiVersion": PODS.api_version,
        "kind": PODS.kind,
        "metadata": meta,
        "spec": {
            "restartPolicy": "Never",
            "activeDeadlineSeconds": spec.timeout_seconds,
            "terminationGracePeriodSeconds": _GRACE_S,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": dict(POD_SECURITY),
            "affinity": {"nodeAffinity": _affinity_to(node)},
            "tolerations": [*_tolerations(), *_spec_tolerations(spec)],
            "containers": [container],
            "volumes": [empty_dir("work"), empty_dir("shm", memory=True), empty_dir("tmp")],
        },
    }


def _affinity_to(node: str) -> Obj:
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [field]}]}
    }


def _tolerations() -> list[Obj]:
    """Tolerate the quarantine taint and the taint of a cordon, since quarantined nodes are checked."""
    return [
        {"key": names.TAINT, "operator": "Exists"},
        {"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"},
    ]


def _spec_tolerations(spec: NodeCheckSpec) -> list[Obj]:
    return [one.model_dump(by_alias=True, exclude_none=True) for one in spec.tolerations or ()]
