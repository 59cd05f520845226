"""Schema, defaults and rules of a custom resource version."""

from __future__ import annotations

from typing import Any

from apiserver.errors import Cause, Json
from apiserver.resources import Resource
from apiserver.typed import Decoding, copy


class SchemaType:
    """Prunes by the compiled schema; fills defaults; structural checks."""

    def __init__(self, resource: Resource) -> None:
        self._node = resource.node
        self._schema = resource.schema

    def decode(self, body: Json) -> tuple[Json, list[str]]:
        decoding = Decoding()
        obj: Json = decoding.prune(body, self._node, "")
        return obj, decoding.unknown

    def default(self, obj: Json) -> Json:
        found: Json = _defaulted(copy(obj), self._schema)
        return found

    def check(self, _obj: Json, _old: Json | None) -> list[Cause]:
        return []


def _defaulted(value: Any, schema: Json) -> Any:
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy(inner["default"])
            if name in value:
                value[name] = _defaulted(value[name], inner)
    elif isinstance(value, list) and "items" in schema:
        return [_defaulted(one, schema["items"]) for one in value]
    return value
