"""Detection thresholds of a cluster: the operator's `--detection-defaults`, for what a job leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megascale.job.api import parse_detection
from megascale_operator.kube.resources import Obj

DEFAULTS_FILE: Final = "detection-defaults.json"
"""Key in a job's ConfigMap, and name of the file beside job.yaml in the pods of the job."""


@dataclass(frozen=True, slots=True)
class DetectionDefaults:
    """Values for `spec.detection` of all jobs; what a job says itself wins, field by field."""

    values: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str, origin: str = "--detection-defaults") -> DetectionDefaults | None:
        """A YAML or JSON mapping with fields of `spec.detection`; "" = none.

        Args:
            origin: what errors call it.

        Raises:
            ManifestError: names the field, its value and what is allowed.
        """
        return cls(parse_detection(text, file=origin)) if text.strip() else None

    @classmethod
    def beside(cls, job_file: Path) -> DetectionDefaults | None:
        """Those that the operator used for the job whose `job.yaml` this is, None = it had none."""
        try:
            return cls(json.loads((job_file.parent / DEFAULTS_FILE).read_text()))
        except FileNotFoundError:
            return None

    def fill(self, obj: Obj) -> Obj:
        """The TrainingJob with the cluster's values where it has none of its own."""
        detection = _under(self.values, obj["spec"].get("detection") or {})
        return {**obj, "spec": {**obj["spec"], "detection": detection}}

    def text(self) -> str:
        """As JSON."""
        return json.dumps(self.values, sort_keys=True, separators=(",", ":"))


def origins(defaults: Mapping[str, Any], own: Mapping[str, Any], prefix: str = "") -> dict[str, Obj]:
    """Every field of `spec.detection` that is given, by its path: its `value`, and `from` job or cluster."""
    found: dict[str, Obj] = {}
    for name in sorted({*defaults, *own}):
        theirs, ours = defaults.get(name), own.get(name)
        if isinstance(theirs, Mapping) or isinstance(ours, Mapping):
            found |= origins(theirs or {}, ours or {}, f"{prefix}{name}.")
        elif ours is not None:
            found[f"{prefix}{name}"] = {"value": ours, "from": "job"}
        elif theirs is not None:
            found[f"{prefix}{name}"] = {"value": theirs, "from": "cluster"}
    return found


def _under(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> Obj:
    """`own` over `defaults`, section by section; a list is one value."""
    merged = dict(defaults)
    for name, value in own.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and (isinstance(value, Mapping) or value is None):
            merged[name] = _under(below, value or {})
        elif value is not None:
            merged[name] = value
    return merged
