"""The driver pod of a job."""

from __future__ import annotations

from typing import Final

from megascale_operator.kube.resources import PODS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.job import Job
from megascale_operator.reconcile.pods import (
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

_GONE_AFTER_S: Final = 30
"""Seconds for which the pod tolerates a not-ready or unreachable node before it is evicted and replaced. The
old driver may still run; the higher term of its successor fences it."""
_GRACE_S: Final = 30
METRICS_PORT: Final = 8080


def driver_pod(job: Job, incarnation: int, image: str) -> Obj:
    """Return the driver pod; of the template's volumes it has those that the driver container mounts."""
    container = base_container(job, "driver", image)
    wanted = {one["name"] for one in container["volumeMounts"]}
    container["command"] = ["python", "-m", "megascale_operator.driver"]
    container["args"] = [
        "--namespace", job.namespace, "--job", job.name, "--pod", "$(POD_NAME)", "--pod-ip", "$(POD_IP)",
    ]  # fmt: skip
    container["ports"] = [{"name": "metrics", "containerPort": METRICS_PORT}]
    own = [
        field_env("POD_NAME", "metadata.name"),
        field_env("POD_IP", "status.podIP"),
        field_env("NODE_NAME", "spec.nodeName"),
    ]
    container["env"] = [*own, *container["env"]]
    container["volumeMounts"] += [
        mount("job", JOB_FILES, read_only=True),
        mount("work", WORK),
        mount("tmp", "/tmp"),  # noqa: S108 - in the container
    ]
    spec = {
        **shared_spec(job),
        "serviceAccountName": names.driver_account(job.name),
        "terminationGracePeriodSeconds": _GRACE_S,
        "tolerations": [_tolerates("not-ready"), _tolerates("unreachable")],
        "containers": [container],
        "volumes": [
            *(one for one in template_volumes(job) if one["name"] in wanted),
            config_volume("job", names.job_map(job.name)),
            empty_dir("work"),
            empty_dir("tmp"),
        ],
    }
    meta = pod_metadata(
        job, names.driver_pod(job.name, incarnation), "driver", {names.INCARNATION: str(incarnation)}
    )
    return {"apiVersion": PODS.api_version, "kind": PODS.kind, "metadata": meta, "spec": spec}


def _tolerates(condition: str) -> Obj:
    return {
        "key": f"node.kubernetes.io/{condition}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": _GONE_AFTER_S,
    }
