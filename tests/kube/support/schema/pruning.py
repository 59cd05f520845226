"""Removal of fields that the schema does not declare."""

from __future__ import annotations

from typing import Any

from .violation import Json, child


def prune(value: Any, schema: Json, path: str, unknown: list[str]) -> None:
    """Remove unknown fields in place; their paths are appended to `unknown`."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            prune(item, schema.get("items", {}), child(path, index), unknown)
    if not isinstance(value, dict):
        return
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
    for name in list(value):
        if name in properties:
            prune(value[name], properties[name], child(path, name), unknown)
        elif isinstance(extra, dict):
            prune(value[name], extra, child(path, name), unknown)
        elif not schema.get("x-kubernetes-preserve-unknown-fields"):
            del value[name]
            unknown.append(child(path, name))
