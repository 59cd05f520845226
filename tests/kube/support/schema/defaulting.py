"""Defaults, outermost first; a null of a field that is not nullable is defaulted or dropped."""

from __future__ import annotations

import copy
from typing import Any

from .violation import Json


def default(value: Any, schema: Json) -> None:
    """Set the defaults of `value` in place."""
    if isinstance(value, dict):
        _default_properties(value, schema.get("properties", {}))
        extra = schema.get("additionalProperties")
        for name in value.keys() - schema.get("properties", {}).keys() if isinstance(extra, dict) else ():
            if value[name] is None and "default" in extra and not extra.get("nullable"):
                value[name] = copy.deepcopy(extra["default"])
            default(value[name], extra)
    elif isinstance(value, list):
        for item in value:
            default(item, schema.get("items", {}))


def _default_properties(value: Json, properties: Json) -> None:
    for name, inner in properties.items():
        null = name in value and value[name] is None and not inner.get("nullable")
        if "default" in inner and (name not in value or null):
            value[name] = copy.deepcopy(inner["default"])
        elif null:
            del value[name]
        if name in value:
            default(value[name], inner)
