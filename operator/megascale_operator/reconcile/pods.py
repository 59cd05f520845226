"""Common parts of driver and slot pods: restricted security contexts, and the job's pod template."""

from __future__ import annotations

from typing import Any, Final

from megascale.job.api import Container
from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.job import Job

POD_SECURITY: Final[Obj] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
CONTAINER_SECURITY: Final[Obj] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
WORK: Final = f"{names.RUN}/work"
JOB_FILES: Final = f"{names.RUN}/job"


def field_env(name: str, path: str) -> Obj:
    """Return an environment variable with the value of a pod field."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def empty_dir(name: str, *, memory: bool = False, mebibytes: int | None = None) -> Obj:
    settings: Obj = {"medium": "Memory"} if memory else {}
    if mebibytes is not None:
        settings["sizeLimit"] = f"{mebibytes}Mi"
    return {"name": f"megascale-{name}", "emptyDir": settings}


def config_volume(name: str, config_map: str, *, optional: bool = False) -> Obj:
    source = {"name": config_map, **({"optional": True} if optional else {})}
    return {"name": f"megascale-{name}", "configMap": source}


def mount(name: str, path: str, *, read_only: bool = False) -> Obj:
    return {"name": f"megascale-{name}", "mountPath": path, **({"readOnly": True} if read_only else {})}


def plain(value: Any) -> Any:  # noqa: ANN401 - a section of the manifest
    """Return a section as a JSON value without unset fields."""
    return value.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)


def container_template(job: Job, name: str) -> Container:
    """Return the template's container of that name, an empty one if there is none."""
    found = job.spec.template.spec.containers or ()
    return next((one for one in found if one.name == name), Container(name=name))  # type: ignore[arg-type]


def base_container(job: Job, name: str, image: str) -> Obj:
    """Return a container with the template's image, environment, mounts and resources, without a command."""
    wanted = container_template(job, name)
    container: Obj = {
        "name": name,
        "image": wanted.image or image,
        "workingDir": WORK,
        "securityContext": wanted.security_context or dict(CONTAINER_SECURITY),
        "env": [one.model_dump(by_alias=True, exclude_none=True) for one in wanted.env or ()],
        "volumeMounts": [
            one.model_dump(by_alias=True, exclude_none=True) for one in wanted.volume_mounts or ()
        ],
    }
    if wanted.image_pull_policy:
        container["imagePullPolicy"] = wanted.image_pull_policy
    if wanted.resources is not None:
        container["resources"] = plain(wanted.resources)
    return container


def shared_spec(job: Job) -> Obj:
    """Return the parts of the pod spec that are the same for driver and slots."""
    spec = job.spec.template.spec
    shared: Obj = {
        "restartPolicy": "OnFailure",
        "enableServiceLinks": False,
        "securityContext": dict(POD_SECURITY),
    }
    if spec.priority_class_name:
        shared["priorityClassName"] = spec.priority_class_name
    if spec.scheduler_name:
        shared["schedulerName"] = spec.scheduler_name
    if spec.image_pull_secrets:
        shared["imagePullSecrets"] = [{"name": one.name} for one in spec.image_pull_secrets]
    return shared


def template_volumes(job: Job) -> list[Obj]:
    return [one.model_dump(by_alias=True, exclude_none=True) for one in job.spec.template.spec.volumes or ()]


def pod_metadata(job: Job, name: str, role: str, annotations: dict[str, str]) -> Obj:
    """Return pod metadata with the template's labels and annotations; the operator's own take precedence."""
    template = job.spec.template.metadata
    meta = job.metadata(name, role)
    meta["labels"] = {**(template.labels or {}), **meta["labels"]}
    meta["annotations"] = {**(template.annotations or {}), **annotations}
    return meta
