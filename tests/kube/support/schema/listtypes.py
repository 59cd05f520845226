"""Duplicate entries of sets and keyed lists."""

from __future__ import annotations

import json
from typing import Any

from .violation import Json, Violation, child


def list_violations(value: Any, schema: Json, path: str) -> list[Violation]:
    """Return the duplicate entries of all lists in `value`."""
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties") or {}
        return [
            violation
            for name, inner in value.items()
            for violation in list_violations(inner, properties.get(name, extra), child(path, name))
        ]
    if not isinstance(value, list):
        return []
    inside = [
        violation
        for index, item in enumerate(value)
        for violation in list_violations(item, schema.get("items", {}), child(path, index))
    ]
    return _repeated(value, schema, path) + inside


def keys_of(item: Any, schema: Json) -> str:
    """Return the identity of a list entry, as text."""
    names = schema.get("x-kubernetes-list-map-keys", ())
    if names and isinstance(item, dict):
        return json.dumps({name: item.get(name) for name in names}, sort_keys=True)
    return json.dumps(item, sort_keys=True)


def _repeated(value: list[Any], schema: Json, path: str) -> list[Violation]:
    if schema.get("x-kubernetes-list-type") not in {"set", "map"}:
        return []
    found, seen = [], set()
    for index, item in enumerate(value):
        key = keys_of(item, schema)
        if key in seen:
            found.append(Violation(child(path, index), f"Duplicate value: {key}", "FieldValueDuplicate"))
        seen.add(key)
    return found
