"""`--checkpoint-root`: checkpoint storage of jobs without `checkpoint.uri`.

See docs/decisions/0055-a-place-for-checkpoints.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from megascale.errors import InputError
from megascale_operator.kube.resources import Obj

CLAIM: Final = "claim:"
MOUNT_PATH: Final = "/mnt/checkpoints"
"""Mount path of a node directory or a claim in slot and driver containers."""
_VOLUME: Final = "default-checkpoints"
_UID: Final = 8


@dataclass(frozen=True, slots=True)
class CheckpointRoot:
    """Storage for all jobs without `checkpoint.uri`, with one directory per job.

    Attributes:
        base: path in the pods.
        volume: volume to mount at that path.
    """

    base: str
    volume: Obj

    @classmethod
    def parse(cls, text: str) -> CheckpointRoot | None:
        """Parse the value of `--checkpoint-root`; "" gives None.

        Args:
            text: `/directory/on/every/node`, or `claim:NAME`, a PersistentVolumeClaim in each
                job's namespace.

        Raises:
            InputError: the text has another form.
        """
        if not text:
            return None
        if text.startswith(CLAIM) and text != CLAIM:
            claim = {"claimName": text.removeprefix(CLAIM)}
            return cls(MOUNT_PATH, {"name": _VOLUME, "persistentVolumeClaim": claim})
        if text.startswith("/"):
            return cls(MOUNT_PATH, {"name": _VOLUME, "hostPath": {"path": text, "type": "Directory"}})
        raise InputError(
            f"--checkpoint-root {text!r}: expected an absolute path that exists on every node, or "
            "claim:NAME; object stores are not supported"
        )

    def fill(self, obj: Obj) -> Obj:
        """Return the TrainingJob with `checkpoint.uri` and volume set; unchanged if it has a URI."""
        spec, meta = obj["spec"], obj["metadata"]
        checkpoint = spec.get("checkpoint") or {}
        if checkpoint.get("uri"):
            return obj
        uri = f"{self.base}/{meta['namespace']}/{meta['name']}-{str(meta['uid'])[:_UID]}"
        template = _with_volume(spec.get("template") or {}, self.volume)
        return {**obj, "spec": {**spec, "checkpoint": {**checkpoint, "uri": uri}, "template": template}}


def _with_volume(template: Obj, volume: Obj) -> Obj:
    """Return the template with the volume, mounted in the slot and driver containers."""
    spec: dict[str, Any] = template.get("spec") or {}
    containers = {one["name"]: one for one in spec.get("containers") or ()}
    for name in ("slot", "driver"):
        container = containers.get(name) or {"name": name}
        mounts = [*(container.get("volumeMounts") or ()), {"name": _VOLUME, "mountPath": MOUNT_PATH}]
        containers[name] = {**container, "volumeMounts": mounts}
    volumes = [*(spec.get("volumes") or ()), volume]
    return {**template, "spec": {**spec, "containers": list(containers.values()), "volumes": volumes}}
