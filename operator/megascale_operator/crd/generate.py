"""Generates the CustomResourceDefinitions of TrainingJob and NodeCheck, as data and as YAML."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from megascale.job.api import Place, TrainingJob, explain
from megascale_operator.crd import nodecheck, training
from megascale_operator.crd.cel_rule import CelRule, attach
from megascale_operator.crd.status import JobStatus
from megascale_operator.crd.structural import Schema, structural

GROUP: Final = "megascale.io"
VERSION: Final = "v1alpha1"
FOLDER: Final = Path(__file__).resolve().parents[2] / "crds"
_HEADER: Final = "# Made by `python -m megascale_operator.crd` from the pydantic models; do not edit.\n"
_API_VERSION: Final = "Group and version of this schema."


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; `wide` columns are shown with `-o wide`."""

    name: str
    type: str
    path: str
    description: str
    wide: bool = False

    def schema(self) -> Schema:
        """Return the entry as it is written to the CRD."""
        entry: Schema = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return entry | {"description": self.description} | ({"priority": 1} if self.wide else {})


@dataclass(frozen=True, slots=True)
class Kind:
    """The source of one CRD.

    Attributes:
        model, status: pydantic models of the object and of its `status`.
        cel_rules: path -> rules to add there.
        keyed: see `structural`.
    """

    kind: str
    plural: str
    short: str
    scope: str
    description: str
    model: type[BaseModel]
    status: type[BaseModel]
    cel_rules: Mapping[str, Sequence[CelRule]]
    keyed: Mapping[str, Sequence[str]]
    columns: Sequence[Column]

    @property
    def file(self) -> str:
        """Name of the generated file."""
        return f"{GROUP}_{self.plural}.yaml"


_AGE: Final = Column("Age", "date", ".metadata.creationTimestamp", "Time since the object was created.")
KINDS: Final = (
    Kind(
        "TrainingJob",
        "trainingjobs",
        "tj",
        "Namespaced",
        "A training job: the same file for `megascale run` and for `kubectl apply`.",
        TrainingJob,
        JobStatus,
        training.cel_rules(),
        training.KEYED,
        (
            Column("State", "string", ".status.state", "The job in one word."),
            Column("Nodes", "string", ".status.nodes", "Ready and wanted slots."),
            Column("Step", "integer", ".status.driver.step", "Newest optimizer step."),
            Column("MFU", "string", ".status.driver.mfu", "Model FLOPs utilization."),
            Column(
                "Goodput", "string", ".status.driver.goodput", "Share of the job's time that was productive."
            ),
            Column("Restarts", "integer", ".status.driver.restarts", "Restarts so far."),
            _AGE,
            Column(
                "Checkpoint",
                "integer",
                ".status.driver.checkpointStep",
                "Newest durable checkpoint.",
                wide=True,
            ),
            Column("Fault", "string", ".status.driver.lastFault", "The newest fault.", wide=True),
            Column("Node", "string", ".status.driver.lastFaultNode", "Node of the newest fault.", wide=True),
        ),
    ),
    Kind(
        nodecheck.KIND,
        "nodechecks",
        "nc",
        "Cluster",
        "Health checks on nodes, by name or by label.",
        nodecheck.NodeCheck,
        nodecheck.NodeCheckStatus,
        nodecheck.CEL_RULES,
        nodecheck.KEYED,
        (
            Column("State", "string", ".status.state", "The check in one word."),
            Column("Total", "integer", ".status.total", "Nodes to be checked."),
            Column("Passed", "integer", ".status.passed", "Nodes that passed."),
            Column("Convicted", "integer", ".status.convicted", "Nodes that failed."),
            Column("Skipped", "integer", ".status.skipped", "Nodes that were not checked."),
            _AGE,
        ),
    ),
)


def definition(kind: Kind) -> Schema:
    """Return the CustomResourceDefinition of `kind`."""
    names = {
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "plural": kind.plural,
        "singular": kind.kind.lower(),
        "shortNames": [kind.short],
        "categories": ["megascale"],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [column.schema() for column in kind.columns],
        "schema": {"openAPIV3Schema": _object_schema(kind)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {"group": GROUP, "scope": kind.scope, "names": names, "versions": [version]},
    }


def _object_schema(kind: Kind) -> Schema:
    model = structural(kind.model, kind.keyed, "")["properties"]
    name = {
        key: value for key, value in model["metadata"]["properties"]["name"].items() if key != "description"
    }
    schema: Schema = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": _API_VERSION},
            "kind": {"type": "string", "description": f"Always {kind.kind}."},
            "metadata": {"type": "object", "properties": {"name": name}},
            "spec": model["spec"],
            "status": structural(kind.status, kind.keyed, "status"),
        },
    }
    _tell_defaults(schema["properties"]["spec"], Place(kind.model).child("spec"))
    for path, rules in kind.cel_rules.items():
        attach(schema, path, rules)
    return schema


def _tell_defaults(schema: Schema, place: Place | None) -> None:
    """Append to descriptions the defaults that depend on other fields, which a CRD cannot set itself."""
    for name, inner in schema.get("properties", {}).items():
        below = place.items.child(name) if place else None
        default = explain(name, below).default if below else None
        told = default not in {None, "null", "{}", "[]"} and not str(default).startswith("required")
        if told and "default" not in inner:
            inner["description"] += f" Default: {str(default).strip(chr(34))}."
        _tell_defaults(inner.get("items", inner), below)


class _Representer(SafeRepresenter):
    """Writes floats with a decimal point, e.g. 1.0e-06, because YAML 1.1 reads 1e-06 as a string."""

    def number(self, value: float) -> Any:  # noqa: ANN401
        digits, exponent, power = repr(value).partition("e")
        whole = digits if "." in digits else f"{digits}.0"
        return self.represent_scalar("tag:yaml.org,2002:float", f"{whole}{exponent}{power}")


_Representer.add_representer(float, _Representer.number)


def to_yaml(document: Mapping[str, Any]) -> str:
    """Return the document as YAML, with a header that says it is generated."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.width = 120
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO(_HEADER)
    stream.seek(0, io.SEEK_END)
    writer.dump(document, stream)
    return stream.getvalue()


def rendered() -> dict[str, str]:
    """Return file name -> content of all CRDs."""
    return {kind.file: to_yaml(definition(kind)) for kind in KINDS}
