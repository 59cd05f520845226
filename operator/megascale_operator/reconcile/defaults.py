"""`--detection-defaults`: the cluster's defaults of `spec.detection`, for fields that a job does not set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megascale.job.api import parse_detection
from megascale_operator.kube.resources import Obj

DEFAULTS_FILE: Final = "detection-defaults.json"
"""Key in the ConfigMap `<job>-job`, and name of the file beside job.yaml in the job's pods."""


@dataclass(frozen=True, slots=True)
class DetectionDefaults:
    """Defaults of `spec.detection` for all jobs; a job's own values take precedence, field by field."""

    values: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, origin: str = "--detection-defaults") -> DetectionDefaults | None:
        """Parse a YAML or JSON mapping with fields of `spec.detection`; "" gives None.

        Args:
            origin: name of the source in errors.

        Raises:
            ManifestError: a field is unknown or its value is not allowed.
        """
        return cls(parse_detection(text, file=origin)) if text.strip() else None

    @classmethod
    def beside(cls, job_file: Path) -> DetectionDefaults | None:
        """Read the defaults that the operator stored beside `job.yaml`, None if there are none."""
        try:
            return cls(json.loads((job_file.parent / DEFAULTS_FILE).read_text()))
        except FileNotFoundError:
            return None

    def fill(self, obj: Obj) -> Obj:
        """Return the TrainingJob with the defaults for the fields that it does not set."""
        detection = _under(self.values, obj["spec"].get("detection") or {})
        return {**obj, "spec": {**obj["spec"], "detection": detection}}

    def text(self) -> str:
        """Return the defaults as JSON."""
        return json.dumps(self.values, sort_keys=True, separators=(",", ":"))


def origins(defaults: Mapping[str, Any], own: Mapping[str, Any], prefix: str = "") -> dict[str, Obj]:
    """Return the fields of `spec.detection` that are set, by path: `value`, and `from` "job" or "cluster"."""
    found: dict[str, Obj] = {}
    for name in sorted({*defaults, *own}):
        default, value = defaults.get(name), own.get(name)
        if isinstance(default, Mapping) or isinstance(value, Mapping):
            found |= origins(default or {}, value or {}, f"{prefix}{name}.")
        elif value is not None:
            found[f"{prefix}{name}"] = {"value": value, "from": "job"}
        elif default is not None:
            found[f"{prefix}{name}"] = {"value": default, "from": "cluster"}
    return found


def _under(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> Obj:
    """Merge `own` over `defaults`, section by section; a list is replaced as a whole."""
    merged = dict(defaults)
    for name, value in own.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and (isinstance(value, Mapping) or value is None):
            merged[name] = _under(below, value or {})
        elif value is not None:
            merged[name] = value
    return merged
