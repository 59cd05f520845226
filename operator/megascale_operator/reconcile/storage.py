"""Where checkpoints of jobs go that name no place: the operator's `--checkpoint-root` (decision 0055)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from megascale.errors import InputError
from megascale_operator.kube.resources import Obj

CLAIM: Final = "claim:"
PLACE: Final = "/mnt/checkpoints"
"""Where a folder or a claim is mounted in slots and drivers."""
_VOLUME: Final = "default-checkpoints"
_UID: Final = 8


@dataclass(frozen=True, slots=True)
class CheckpointRoot:
    """One place for all jobs without `checkpoint.uri`, each in a folder of its own.

    Attributes:
        base: URI, or path in the pods.
        volume: what is mounted there, None for an object store.
    """

    base: str
    volume: Obj | None = None

    @classmethod
    def parse(cls, text: str) -> CheckpointRoot | None:
        """`s3://bucket/prefix`, `/folder/on/every/node`, `claim:NAME` (of each job's namespace), "" = none.

        Raises:
            InputError: it is none of these.
        """
        if not text:
            return None
        if text.startswith(CLAIM) and text != CLAIM:
            claim = {"claimName": text.removeprefix(CLAIM)}
            return cls(PLACE, {"name": _VOLUME, "persistentVolumeClaim": claim})
        if text.startswith("/"):
            return cls(PLACE, {"name": _VOLUME, "hostPath": {"path": text, "type": "Directory"}})
        if urlsplit(text).scheme and "://" in text:
            return cls(text.rstrip("/"))
        raise InputError(
            f"--checkpoint-root {text!r}: expected a URI (s3://bucket/prefix), an absolute folder that every "
            "node has, or claim:NAME"
        )

    def fill(self, obj: Obj) -> Obj:
        """The TrainingJob with its place written in, as if its author had; unchanged if it names one."""
        spec, meta = obj["spec"], obj["metadata"]
        checkpoint = spec.get("checkpoint") or {}
        if checkpoint.get("uri"):
            return obj
        uri = f"{self.base}/{meta['namespace']}/{meta['name']}-{str(meta['uid'])[:_UID]}"
        filled = {**spec, "checkpoint": {**checkpoint, "uri": uri}}
        if self.volume is not None:
            filled["template"] = _with_volume(spec.get("template") or {}, self.volume)
        return {**obj, "spec": filled}


def _with_volume(template: Obj, volume: Obj) -> Obj:
    """The template with the volume, mounted in slots and drivers."""
    spec: dict[str, Any] = template.get("spec") or {}
    containers = {one["name"]: one for one in spec.get("containers") or ()}
    for name in ("slot", "driver"):
        container = containers.get(name) or {"name": name}
        mounts = [*(container.get("volumeMounts") or ()), {"name": _VOLUME, "mountPath": PLACE}]
        containers[name] = {**container, "volumeMounts": mounts}
    volumes = [*(spec.get("volumes") or ()), volume]
    return {**template, "spec": {**spec, "containers": list(containers.values()), "volumes": volumes}}
