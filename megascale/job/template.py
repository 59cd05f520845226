"""`spec.template`: what is changed in the pods of a job. Kubernetes only; ignored on a workstation."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from megascale.job.base import (
    Label,
    LabelKey,
    LabelValue,
    Natural,
    Problem,
    Section,
    Text,
    Words,
    refuse,
    repeated,
)

OWN_PREFIX = "megascale.io/"
"""Labels and annotations that begin with this belong to the operator."""
OWN_FOLDERS = ("/run/megascale", "/dev/shm", "/tmp")  # noqa: S108
"""Folders that the operator mounts into every pod."""

Quantity = Annotated[
    Annotated[int, Field(ge=0, le=2**53)]
    | Annotated[
        str,
        Field(
            pattern=r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$", max_length=32
        ),
    ],
    Words("a quantity such as 8, 500m or 64Gi"),
]
Amounts = Annotated[dict[str, Quantity], Field(max_length=32)]
Passed = Annotated[dict[str, Any], Words("a mapping, as in a Kubernetes pod")]


class TemplateMetadata(Section):
    """Labels and annotations added to the job's pods."""

    labels: Annotated[dict[str, LabelValue] | None, Field(max_length=64)] = None
    """Labels added to the pods; none that begins with megascale.io/."""
    annotations: Annotated[
        dict[str, Annotated[str, Field(max_length=16_384)]] | None, Field(max_length=64)
    ] = None
    """Annotations added to the pods; none that begins with megascale.io/."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            Problem((section, key), f"begins with {OWN_PREFIX}, which is the operator's")
            for section, entries in (("labels", self.labels), ("annotations", self.annotations))
            for key in entries or ()
            if key.startswith(OWN_PREFIX)
        ]
        refuse(problems)
        return self


class Toleration(Section):
    """A taint of nodes that the slots tolerate; not-ready and unreachable nodes are tolerated anyway."""

    key: LabelKey | None = None
    """Key of the taint; left out = every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal: the taint has this value; Exists: any value."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; left out = every effect."""
    toleration_seconds: Natural | None = None
    """How long a NoExecute taint is tolerated; left out = without limit."""


class Volume(Section):
    """A volume of the slots; everything but the name is passed through as it is in a Kubernetes pod."""

    model_config = ConfigDict(extra="allow")

    name: Label
    """Name that volumeMounts refer to; none that begins with megascale-."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name.startswith("megascale-"):
            refuse([Problem(("name",), f"{self.name} begins with megascale-, which is the operator's")])
        return self


class VolumeMount(Section):
    """Where a volume is mounted in the container."""

    name: Label
    """Name of the volume."""
    mount_path: Annotated[str, Field(pattern=r"^/[^:]*$", max_length=1024), Words("an absolute path")]
    """Folder in the container; none of the operator's own: /run/megascale, /dev/shm, /tmp."""
    sub_path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Folder in the volume that is mounted in place of its root."""
    read_only: bool = False
    """Mount it read-only."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for folder in OWN_FOLDERS:
            if self.mount_path == folder or self.mount_path.startswith(f"{folder}/"):
                refuse(
                    [
                        Problem(
                            ("mountPath",), f"{self.mount_path} lies in {folder}, which the operator mounts"
                        )
                    ]
                )
        return self


class EnvVar(Section):
    """An environment variable of the container."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256), Words("letters, digits and _")
    ]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=32_768)] | None = None
    """Value of the variable."""
    value_from: Passed | None = None
    """Source of the value, as in a Kubernetes pod: a key of a ConfigMap or Secret, or a field of the pod."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.value is not None and self.value_from is not None:
            refuse([Problem(("value",), "is given beside valueFrom, expected one of them")])
        return self


class Resources(Section):
    """What the container may use, by resource name: cpu, memory, nvidia.com/gpu..."""

    limits: Amounts | None = None
    """The most that the container may use."""
    requests: Amounts | None = None
    """What the scheduler reserves for the container; default: the limits."""


class Container(Section):
    """Changes to one of the job's containers; command and args are the operator's."""

    name: Literal["slot", "driver"]
    """slot: the agent and its ranks, one per node; driver: the process that decides about the job."""
    image: Text | None = None
    """Image with megascale and the job's own code; default: the operator's --image."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    """When the node fetches the image."""
    resources: Resources | None = None
    """CPUs, memory and GPUs; the memory of snapshots counts against the slot's limit."""
    env: Annotated[list[EnvVar] | None, Field(max_length=256)] = None
    """Environment variables added to the container; each name once."""
    volume_mounts: Annotated[list[VolumeMount] | None, Field(max_length=64)] = None
    """Where the template's volumes are mounted; each mountPath once."""
    security_context: Passed | None = None
    """Security settings of the container, as in a Kubernetes pod: they replace the operator's own."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(
            [
                *repeated("env", "name", [item.name for item in self.env or ()]),
                *repeated(
                    "volumeMounts", "mountPath", [item.mount_path for item in self.volume_mounts or ()]
                ),
            ]
        )
        return self


class LocalName(Section):
    """A Secret in the job's namespace."""

    name: Annotated[
        str,
        Field(pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$", max_length=253),
        Words("a name: lower-case letters, digits, hyphens and dots"),
    ]
    """Name of the Secret."""


class PodSpec(Section):
    """Changes to the pods' spec. nodeSelector, tolerations, affinity, hostNetwork, runtimeClassName and
    securityContext are for the slots alone, the rest for the driver's pod too."""

    containers: Annotated[list[Container] | None, Field(max_length=2)] = None
    """Changes to the containers slot and driver; each name once."""
    node_selector: Annotated[dict[str, LabelValue] | None, Field(max_length=64)] = None
    """Labels that the nodes of slots must have."""
    tolerations: Annotated[list[Toleration] | None, Field(max_length=32)] = None
    """Taints that the slots tolerate."""
    affinity: Passed | None = None
    """Affinity of the slots, as in a Kubernetes pod; the operator adds the nodes that the job avoids."""
    volumes: Annotated[list[Volume] | None, Field(max_length=64)] = None
    """Volumes of the slots, and of the driver if it mounts them, as in a Kubernetes pod; each name once."""
    host_network: bool | None = None
    """Slots use their node's network, as RDMA needs without a device plug-in for it."""
    runtime_class_name: Label | None = None
    """Runtime class of the slots, such as nvidia."""
    priority_class_name: Label | None = None
    """Priority of the pods."""
    scheduler_name: Label | None = None
    """Scheduler that places the pods."""
    image_pull_secrets: Annotated[list[LocalName] | None, Field(max_length=16)] = None
    """Secrets in the job's namespace that images are fetched with; each name once."""
    security_context: Passed | None = None
    """Security settings of the slots' pods, as in a Kubernetes pod: they replace the operator's own."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(
            [
                *repeated("containers", "name", [item.name for item in self.containers or ()]),
                *repeated("volumes", "name", [item.name for item in self.volumes or ()]),
                *repeated("imagePullSecrets", "name", [item.name for item in self.image_pull_secrets or ()]),
            ]
        )
        return self


class Template(Section):
    """Changes to the pods that the operator makes for the job, in the shape of a pod template."""

    metadata: TemplateMetadata = TemplateMetadata()
    """Labels and annotations added to the pods."""
    spec: PodSpec = PodSpec()
    """Changes to the pods' spec."""
