"""Field ownership: sets of paths, and their FieldsV1 form in metadata.managedFields.

A path is a tuple of elements in the notation of FieldsV1: `f:name` a field, `k:{"name":"x"}` an item of a
keyed list, `v:"x"` a member of a set.
"""

from __future__ import annotations

import json
from typing import Any

from apiserver.errors import Json
from apiserver.typed import ANY, Node

Path = tuple[str, ...]
Flat = dict[Path, Any]
MEMBER = "."
# Not owned by any manager: identity, and fields that the server sets.
_UNOWNED = frozenset(
    [("f:apiVersion",), ("f:kind",)]
    + [
        ("f:metadata", f"f:{name}")
        for name in (
            "name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation", "selfLink",
            "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields",
        )
    ]
)  # fmt: skip


def item_element(item: Any, node: Node) -> str:
    """Return the path element of an item of a keyed list or a member of a set."""
    if node.list_type == "set" or not isinstance(item, dict):
        return "v:" + json.dumps(item, separators=(",", ":"))
    defaults = node.key_defaults
    keys = {key: item.get(key, defaults.get(key)) for key in sorted(node.keys)}
    present = {key: value for key, value in keys.items() if value is not None}
    return "k:" + json.dumps(present, separators=(",", ":"))


def flatten(obj: Json, node: Node) -> Flat:
    """Return leaf path -> value for all fields of an object that can be owned."""
    flat: Flat = {}
    _flatten_object(obj, node, (), flat)
    for path in flat.keys() & _UNOWNED:
        del flat[path]
    if flat.get(("f:metadata",)) == {}:
        del flat[("f:metadata",)]
    return flat


def _flatten_object(obj: Json, node: Node, path: Path, flat: Flat) -> None:
    for name, value in obj.items():
        _flatten(value, node.child(name), (*path, "f:" + name), flat)


def _flatten(value: Any, node: Node, path: Path, flat: Flat) -> None:
    kind = type(value)
    if kind is dict and value and not node.atomic:
        _flatten_object(value, node, path, flat)
    elif kind is list and value and node.form == "list" and node.list_type != "atomic":
        items = node.items or ANY
        for item in value:
            where = (*path, item_element(item, node))
            flat[where] = MEMBER
            if type(item) is dict:
                _flatten_object(item, items, where, flat)
    else:
        flat[path] = value


def to_fields(paths: frozenset[Path]) -> Json:
    """Return the FieldsV1 of a set of paths."""
    root: Json = {}
    for path in sorted(paths):
        at = root
        for element in path:
            at = at.setdefault(element, {})
        at[MEMBER] = {}
    return _without_lone_members(root)


def _without_lone_members(fields: Json) -> Json:
    if fields.keys() == {MEMBER}:
        return {}
    return {name: _without_lone_members(inner) if inner else inner for name, inner in fields.items()}


def from_fields(fields: Json) -> frozenset[Path]:
    """Return the set of paths of FieldsV1."""
    found: set[Path] = set()
    _collect(fields, (), found)
    return frozenset(found)


def _collect(fields: Json, path: Path, found: set[Path]) -> None:
    for element, inner in fields.items():
        if element == MEMBER:
            found.add(path)
        elif inner:
            _collect(inner, (*path, element), found)
        else:
            found.add((*path, element))


def shown(path: Path) -> str:
    """Format a path as in conflict messages: `.spec.containers[name="x"].image`."""
    text = ""
    for element in path:
        if element.startswith("f:"):
            text += "." + element[2:]
        elif element.startswith("k:"):
            keys = json.loads(element[2:])
            text += "[" + ",".join(f"{key}={json.dumps(value)}" for key, value in keys.items()) + "]"
        else:
            text += f"[={element[2:]}]"
    return text
