"""The cases of the manifest corpus in tests/kube/corpus."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

from .violation import Json

FOLDER: Final = Path(__file__).resolve().parents[2] / "corpus"
CRDS: Final = Path(__file__).resolve().parents[4] / "operator" / "crds"


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        manifest: the object to create.
        update: the object that replaces it, or None.
        refused: the invalid field, of the update if there is one; None if the case is valid.
    """

    name: str
    manifest: Json
    update: Json | None
    refused: str | None

    @property
    def kind(self) -> str:
        """The object's kind."""
        return str(self.manifest["kind"])

    def blames(self, field: str) -> bool:
        """Return whether `field` is the invalid field, or a section that contains it."""
        return self.refused is not None and (
            f"{self.refused}.".startswith(f"{field}.") or self.refused.startswith(f"{field}[")
        )


@cache
def cases() -> tuple[Case, ...]:
    """Return all cases, in the order of the files."""
    return tuple(case for path in sorted(FOLDER.glob("*.yaml")) for case in _cases(path))


@cache
def openapi_schema(plural: str) -> Json:
    """Return `openAPIV3Schema` of a committed CRD."""
    crd = _read(CRDS / f"megascale.io_{plural}.yaml")
    schema: Json = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def _read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def _cases(path: Path) -> Iterator[Case]:
    document = _read(path)
    for case in document["cases"]:
        manifest = _merged(document["base"] | {"metadata": {"name": case["name"]}}, case.get("change", {}))
        for field in case.get("remove", ()):
            *sections, name = field.split(".")
            holder = manifest
            for section in sections:
                holder = holder[section]
            del holder[name]
        update = _merged(manifest, case["then"]) if "then" in case else None
        yield Case(case["name"], manifest, update, case.get("refused"))


def _merged(base: Json, change: Json) -> Json:
    """Return `base` with `change` merged in; sections are merged, other values replaced."""
    merged = copy.deepcopy(base)
    for name, value in change.items():
        inner = merged.get(name)
        merged[name] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged
