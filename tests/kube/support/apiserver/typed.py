"""Types of API objects, compiled from OpenAPI: maps, keyed lists, atomic values, and their fields.

Built-in kinds come from the Kubernetes 1.33 definitions that the `kubernetes-validate` package ships, custom
resources from their CRD. Server-side apply, strategic merge and pruning all walk these nodes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate

from apiserver.errors import Cause, Json

KUBERNETES = "v1.33.0-local"
_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


@dataclass(slots=True)
class Node:
    """The type of one value in an object. `form` is object, map, list, scalar, or any (no schema)."""

    form: str = "any"
    types: tuple[type, ...] = ()
    properties: dict[str, Node] = field(default_factory=dict)
    values: Node | None = None
    items: Node | None = None
    atomic: bool = False
    list_type: str = "atomic"
    keys: tuple[str, ...] = ()
    key_defaults: Json = field(default_factory=dict)
    merge_key: str = ""
    strategies: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()
    preserve: bool = False

    def child(self, name: str) -> Node:
        """Return the node of a field or map key, ANY if the schema does not define it."""
        found = self.properties.get(name)
        return found or self.values or ANY


ANY = Node()


@cache
def definitions() -> dict[str, Json]:
    """Return the built-in definitions by OpenAPI name."""
    root = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / KUBERNETES
    text = (root / "_definitions.json").read_text()
    text = text.replace("/api/_definitions.json#/$defs/", "").replace("#/$defs/", "")
    found: dict[str, Json] = json.loads(text)["$defs"]
    return found


_compiled: dict[str, Node] = {}


def builtin(name: str) -> Node:
    """Return the node of a built-in definition, such as `io.k8s.api.core.v1.Pod`."""
    node = _compiled.get(name)
    if node is None:
        node = _compiled[name] = Node()
        _fill(node, definitions()[name])
    return node


def metadata_node() -> Node:
    return builtin(_META)


def compile_schema(schema: Json) -> Node:
    """Return the node of an OpenAPI schema; in a CRD's root, `metadata` is ObjectMeta."""
    node = Node()
    _fill(node, schema)
    return node


def custom(schema: Json) -> Node:
    """Return the root node of a custom resource version."""
    node = compile_schema(schema)
    if node.form == "any":
        node.form, node.preserve = "object", True
    node.properties |= {"metadata": metadata_node(), "apiVersion": _STRING, "kind": _STRING}
    return node


_STRING = Node(form="scalar", types=(str,))


def _types(schema: Json) -> list[str]:
    given = schema.get("type")
    return [one for one in (given if isinstance(given, list) else [given]) if one and one != "null"]


def _fill(node: Node, schema: Json) -> None:
    if "$ref" in schema:
        _fill_from(node, builtin(schema["$ref"]))
    else:
        _fill_form(node, schema)
    node.atomic = node.atomic or schema.get("x-kubernetes-map-type") == "atomic"
    node.preserve = node.preserve or bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    if node.form == "list":
        node.list_type = schema.get("x-kubernetes-list-type", "atomic")
        node.keys = tuple(schema.get("x-kubernetes-list-map-keys", ()))
        item = node.items.properties if node.items else {}
        node.key_defaults = {"protocol": "TCP"} if "protocol" in node.keys and "protocol" in item else {}
    node.merge_key = schema.get("x-kubernetes-patch-merge-key", "")
    node.strategies = frozenset(filter(None, schema.get("x-kubernetes-patch-strategy", "").split(",")))


def _fill_from(node: Node, other: Node) -> None:
    node.form, node.types, node.required = other.form, other.types, other.required
    node.properties, node.values, node.items = other.properties, other.values, other.items
    node.atomic, node.preserve = other.atomic, other.preserve


def _fill_form(node: Node, schema: Json) -> None:
    kinds = _types(schema)
    node.required = tuple(schema.get("required", ()))
    if (
        schema.get("x-kubernetes-int-or-string")
        or "oneOf" in schema
        or schema.get("format") == "int-or-string"
    ):
        node.form, node.types = "scalar", (int, float, str)
    elif kinds == ["array"]:
        node.form, node.items = "list", compile_schema(schema.get("items", {}))
    elif "properties" in schema:
        node.form = "object"
        for name, child in schema["properties"].items():
            node.properties[name] = compile_schema(child)
    elif kinds == ["object"] and isinstance(schema.get("additionalProperties"), dict):
        node.form, node.values = "map", compile_schema(schema["additionalProperties"])
    elif kinds and kinds[0] in _JSON_TYPES:
        node.form, node.types = "scalar", _JSON_TYPES[kinds[0]]
    elif kinds == ["object"]:
        # Definitions such as FieldsV1 are open objects.
        node.form = "any"


@dataclass
class Decoding:
    """The result of pruning an object: unknown fields and type errors."""

    unknown: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)
    missing: list[Cause] = field(default_factory=list)

    def prune(self, value: Any, node: Node, path: str) -> Any:
        """Return a copy of `value` without unknown fields and nulls."""
        if node.form == "any":
            return copy(value)
        if node.form == "scalar":
            if not isinstance(value, node.types) or (isinstance(value, bool) and bool not in node.types):
                self.mistyped.append(f"cannot unmarshal {_go_name(value)} into Go struct field {path}")
            return value
        wanted = list if node.form == "list" else dict
        if not isinstance(value, wanted):
            self.mistyped.append(f"cannot unmarshal {_go_name(value)} into Go struct field {path}")
            return value
        if isinstance(value, list):
            items = node.items or ANY
            return [self.prune(one, items, f"{path}[{n}]") for n, one in enumerate(value)]
        return self._prune_object(value, node, path)

    def _prune_object(self, value: Json, node: Node, path: str) -> Json:
        kept: Json = {}
        for name, inner in value.items():
            where = f"{path}.{name}" if path else name
            child = node.properties.get(name) or node.values
            if child is None:
                if node.preserve:
                    kept[name] = copy(inner)
                else:
                    self.unknown.append(where)
            elif inner is not None:
                kept[name] = self.prune(inner, child, where)
        if node.required and not path.startswith("status"):
            for name in node.required:
                if kept.get(name) is None:
                    self.missing.append(
                        Cause(f"{path}.{name}" if path else name, "Required value", "FieldValueRequired")
                    )
        return kept


def copy(value: Any) -> Any:
    """Return a deep copy of a JSON value."""
    if type(value) is dict:
        return {name: copy(inner) if type(inner) in _CONTAINERS else inner for name, inner in value.items()}
    if type(value) is list:
        return [copy(inner) if type(inner) in _CONTAINERS else inner for inner in value]
    return value


_CONTAINERS = frozenset((dict, list))


def _go_name(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "bool", int: "number", float: "number"}
    return names.get(type(value), "null")
