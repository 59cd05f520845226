"""The slot pods of a job: one per node, each runs an agent."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Final

from megascale_operator.kube.resources import PODS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.gang import gang_of
from megascale_operator.reconcile.job import Job
from megascale_operator.reconcile.memory import snapshot_mebibytes
from megascale_operator.reconcile.pods import (
    CONTAINER_SECURITY,
    JOB_FILES,
    WORK,
    base_container,
    config_volume,
    empty_dir,
    field_env,
    mount,
    pod_metadata,
    shared_spec,
    template_volumes,
)

_TOKEN_S: Final = 3600
_GRACE_S: Final = 120
"""From SIGTERM to SIGKILL; the agent saves a checkpoint in this time."""
_MEMORY: Final = f"{names.RUN}/memory"
_SHM: Final = "/dev/shm"  # noqa: S108 - in the container
_TMP: Final = "/tmp"  # noqa: S108 - in the container


@dataclass(frozen=True, slots=True)
class NewSlot:
    """A slot pod to create; `prefer` is the node it should return to, "" for any."""

    slot: int
    incarnation: int
    prefer: str = ""


class SlotPods:
    """Builds the slot pods of one job; the common parts are computed once.

    Args:
        avoid: nodes that the pods must not be placed on.
        driver: digest of `driver.json`, "" if there is none yet.
    """

    def __init__(self, job: Job, image: str, avoid: tuple[str, ...], driver: str) -> None:
        self._job = job
        self._pod: Obj = {
            "apiVersion": PODS.api_version,
            "kind": PODS.kind,
            "metadata": pod_metadata(job, "", "slot", {names.DRIVER: driver} if driver else {}),
            "spec": _spec(job, image, avoid),
        }
        gang_of(job).decorate(self._pod, job)

    def build(self, slot: NewSlot) -> Obj:
        """Return one pod; it may share its spec with other pods and must not be modified."""
        shared = self._pod["metadata"]
        meta = {
            **shared,
            "name": names.slot_pod(self._job.name, slot.slot, slot.incarnation),
            "labels": {**shared["labels"], names.SLOT: str(slot.slot)},
            "annotations": {**shared["annotations"], names.INCARNATION: str(slot.incarnation)},
        }
        pod = {**self._pod, "metadata": meta}
        if slot.prefer:
            pod["spec"] = copy.deepcopy(pod["spec"])
            affinity = pod["spec"]["affinity"].setdefault("nodeAffinity", {})
            affinity.setdefault("preferredDuringSchedulingIgnoredDuringExecution", []).append(
                {"weight": 100, "preference": {"matchFields": [_node_is("In", [slot.prefer])]}}
            )
        return pod


def _node_is(operator: str, nodes: list[str]) -> Obj:
    return {"key": "metadata.name", "operator": operator, "values": nodes}


def _spec(job: Job, image: str, avoid: tuple[str, ...]) -> Obj:
    template = job.spec.template.spec
    container = _agent(job, image)
    spec = {
        **shared_spec(job),
        "serviceAccountName": names.slot_account(job.name),
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": _GRACE_S,
        "tolerations": [
            {"key": f"node.kubernetes.io/{condition}", "operator": "Exists", "effect": "NoExecute"}
            for condition in ("not-ready", "unreachable")
        ],
        "affinity": _affinity(job, avoid),
        "containers": [container],
        "volumes": [*template_volumes(job), *_volumes(job)],
    }
    spec["tolerations"] += [
        one.model_dump(by_alias=True, exclude_none=True) for one in template.tolerations or ()
    ]
    if job.spec.health.check_slots:
        spec["initContainers"] = [check_container(container)]
    if template.node_selector:
        spec["nodeSelector"] = dict(template.node_selector)
    if template.host_network:
        spec |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    if template.runtime_class_name:
        spec["runtimeClassName"] = template.runtime_class_name
    if template.security_context is not None:
        spec["securityContext"] = template.security_context
    return spec


def _agent(job: Job, image: str) -> Obj:
    container = base_container(job, "slot", image)
    container["command"] = ["python", "-m", "megascale.agent"]
    container["args"] = [
        WORK, "$(NODE_NAME)",
        "--job-file", f"{JOB_FILES}/job.yaml",
        "--driver-file", f"{names.RUN}/driver/driver.json",
        "--token-file", f"{names.RUN}/token/token",
        "--ca-file", f"{JOB_FILES}/ca.crt",
        "--server-name", names.server_name(job.name, job.namespace),
        "--host", "$(POD_IP)",
        "--pod", "$(POD_NAME)",
        "--snapshot-root", _MEMORY,
    ]  # fmt: skip
    own = [
        field_env("NODE_NAME", "spec.nodeName"),
        field_env("POD_NAME", "metadata.name"),
        field_env("POD_IP", "status.podIP"),
    ]
    container["env"] = [*own, *container["env"]]
    container["volumeMounts"] += [
        mount("job", JOB_FILES, read_only=True),
        mount("driver", f"{names.RUN}/driver", read_only=True),
        mount("token", f"{names.RUN}/token", read_only=True),
        mount("work", WORK),
        mount("memory", _MEMORY),
        mount("shm", _SHM),
        mount("tmp", _TMP),
    ]
    return container


def check_container(main: Obj) -> Obj:
    """Return the init container that checks the node, with the same devices as the main container."""
    own = ("megascale-work", "megascale-shm", "megascale-tmp")
    check: Obj = {
        "name": "check",
        "image": main["image"],
        "workingDir": WORK,
        "securityContext": main.get("securityContext", CONTAINER_SECURITY),
        "command": ["python", "-m", "megascale.diagnose"],
        "args": ["--light", "--local", "--json", "--termination-log", "/dev/termination-log",
                 "--name", "$(NODE_NAME)"],
        "env": [field_env("NODE_NAME", "spec.nodeName")],
        "volumeMounts": [one for one in main["volumeMounts"] if one["name"] in own],
    }  # fmt: skip
    for key in ("imagePullPolicy", "resources"):
        if key in main:
            check[key] = main[key]
    return check


def _volumes(job: Job) -> list[Obj]:
    claims = {"audience": names.audience(job.namespace, job.uid), "expirationSeconds": _TOKEN_S}
    token = {"serviceAccountToken": {"path": "token", **claims}}
    mebibytes = snapshot_mebibytes(job.spec)
    return [
        config_volume("job", names.job_map(job.name)),
        config_volume("driver", names.driver_map(job.name), optional=True),
        {"name": "megascale-token", "projected": {"sources": [token]}},
        empty_dir("work"),
        empty_dir("memory", memory=True, mebibytes=mebibytes),
        empty_dir("shm", memory=True),
        empty_dir("tmp"),
    ]


def _affinity(job: Job, avoid: tuple[str, ...]) -> Obj:
    """Add to the template's affinity: one slot of the job per node, none on nodes in `avoid`."""
    affinity: Obj = copy.deepcopy(job.spec.template.spec.affinity or {})
    slots_of_job = {"matchLabels": {names.JOB: job.name, names.ROLE: "slot"}}
    apart = affinity.setdefault("podAntiAffinity", {})
    apart.setdefault("requiredDuringSchedulingIgnoredDuringExecution", []).append(
        {"labelSelector": slots_of_job, "topologyKey": names.HOSTNAME_KEY}
    )
    keys = job.spec.scheduling.topology_keys
    if keys:
        together = affinity.setdefault("podAffinity", {})
        # topologyKeys go from the widest to the narrowest domain; narrower domains get more weight.
        together.setdefault("preferredDuringSchedulingIgnoredDuringExecution", []).extend(
            {
                "weight": min(100, 10 * (index + 1)),
                "podAffinityTerm": {"labelSelector": slots_of_job, "topologyKey": key},
            }
            for index, key in enumerate(keys)
        )
    if avoid:
        _require_elsewhere(affinity.setdefault("nodeAffinity", {}), avoid)
    return affinity


def _require_elsewhere(node_affinity: Obj, avoid: tuple[str, ...]) -> None:
    """Add the exclusion to every term of the required node affinity, since the terms are alternatives."""
    required = node_affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = required.setdefault("nodeSelectorTerms", [])
    if not terms:
        terms.append({})
    for term in terms:
        # matchFields accepts one value per entry. The host name label may differ from the node's name.
        term.setdefault("matchFields", []).extend(_node_is("NotIn", [node]) for node in avoid)
