"""Manifests of the suite's jobs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

Json = dict[str, Any]
API = "/apis/megascale.io/v1alpha1"
STATE = "/mnt/state"


def training_job(name: str, folder: Path, **spec: Any) -> Json:
    """Return a job of two nodes and a spare that runs steps.py, with `folder` mounted at /mnt/state.

    `spec` overrides sections; `steps` and `step_s` (seconds) determine its duration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "steps.py"
    if not script.exists():
        shutil.copy(Path(__file__).with_name("steps.py"), script)
    steps, step_s = spec.pop("steps", 100), spec.pop("step_s", 0.2)
    command = {"args": ["python", f"{STATE}/steps.py", f"{STATE}/{name}", str(steps), str(step_s)]}
    health = {"heartbeatSeconds": 1, "silenceSeconds": 5, "flapToleranceSeconds": 1, "checkSlots": False}
    base: Json = {
        "nodes": 2,
        "spareNodes": 1,
        "steps": steps,
        "runtime": {"command": command},
        "checkpoint": {"uri": f"{STATE}/{name}/checkpoints"},
        "health": health | spec.pop("health", {}),
        "template": template(folder),
    }
    body = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name}}
    return body | {"spec": base | spec}


def template(folder: Path) -> Json:
    """Return a template that mounts the host's `folder` in slots and driver."""
    mounts = [{"name": "state", "mountPath": STATE}]
    containers = [{"name": name, "volumeMounts": mounts} for name in ("slot", "driver")]
    volumes = [{"name": "state", "hostPath": {"path": str(folder), "type": "Directory"}}]
    return {"spec": {"volumes": volumes, "containers": containers}}
