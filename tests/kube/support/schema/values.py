"""Validation of types and bounds of values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import lru_cache
from typing import Any

from .violation import Json, Violation, child

_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool}


def value_violations(value: Any, schema: Json, path: str) -> list[Violation]:
    """Return the violations of `value` and everything inside it."""
    if value is None and schema.get("nullable"):
        return []
    wrong_type = _type_violation(value, schema, path)
    if wrong_type:
        return [wrong_type]
    found = [*_bounds(value, schema, path)]
    if isinstance(value, dict):
        found += _object_violations(value, schema, path)
    if isinstance(value, list):
        items = schema.get("items", {})
        found += [
            v for index, item in enumerate(value) for v in value_violations(item, items, child(path, index))
        ]
    return found


def _type_violation(value: Any, schema: Json, path: str) -> Violation | None:
    wanted = "integer,string" if schema.get("x-kubernetes-int-or-string") else schema.get("type", "")
    if not wanted or any(_is_a(value, name) for name in wanted.split(",")):
        return None
    got = "null" if value is None else _name(value)
    message = f'Invalid value: "{got}": {path} in body must be of type {wanted}: "{got}"'
    return Violation(path, message, "FieldValueTypeInvalid")


def _is_a(value: Any, name: str) -> bool:
    if name in _TYPES:
        return isinstance(value, _TYPES[name])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return name == "number" or isinstance(value, int) or value.is_integer()


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    return next((name for name, kind in _TYPES.items() if isinstance(value, kind)), "number")


def _object_violations(value: Json, schema: Json, path: str) -> list[Violation]:
    properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
    found = [
        Violation(child(path, name), "Required value", "FieldValueRequired")
        for name in schema.get("required", ())
        if name not in value
    ]
    for name, inner in value.items():
        if name in properties:
            found += value_violations(inner, properties[name], child(path, name))
        elif isinstance(extra, dict):
            found += value_violations(inner, extra, child(path, name))
    return found


def _bounds(value: Any, schema: Json, path: str) -> Iterator[Violation]:
    if "enum" in schema and value not in schema["enum"]:
        supported = ", ".join(json.dumps(choice) for choice in schema["enum"])
        message = f"Unsupported value: {json.dumps(value)}: supported values: {supported}"
        yield Violation(path, message, "FieldValueNotSupported")
    if isinstance(value, str):
        yield from _text_bounds(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number_bounds(value, schema, path)
    elif isinstance(value, list | dict):
        yield from _size_bounds(value, schema, path)


def _text_bounds(value: str, schema: Json, path: str) -> Iterator[Violation]:
    if len(value) > schema.get("maxLength", len(value)):
        message = f"Too long: may not be more than {schema['maxLength']} bytes"
        yield Violation(path, message, "FieldValueTooLong")
    if len(value) < schema.get("minLength", 0):
        message = (
            f'Invalid value: "{value}": {path} in body should be at least {schema["minLength"]} chars long'
        )
        yield Violation(path, message)
    if "pattern" in schema and not _pattern(schema["pattern"]).search(value):
        yield Violation(
            path, f"Invalid value: \"{value}\": {path} in body should match '{schema['pattern']}'"
        )
    if schema.get("format") == "date-time" and not _is_time(value):
        yield Violation(
            path, f'Invalid value: "{value}": {path} in body must be of type date-time: "{value}"'
        )


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern; Go's `$` does not match before a final line break, Python's does."""
    return re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", text))


def _is_time(value: str) -> bool:
    if not re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[-+]\d\d:\d\d)", value):
        return False
    try:
        datetime.fromisoformat(value.upper())
    except ValueError:
        return False
    return True


def _number_bounds(value: float, schema: Json, path: str) -> Iterator[Violation]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and (value < low or (value == low and schema.get("exclusiveMinimum"))):
        words = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        yield Violation(path, f"Invalid value: {value}: {path} in body should be {words} {low}")
    if high is not None and (value > high or (value == high and schema.get("exclusiveMaximum"))):
        words = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        yield Violation(path, f"Invalid value: {value}: {path} in body should be {words} {high}")


def _size_bounds(value: list[Any] | Json, schema: Json, path: str) -> Iterator[Violation]:
    least, most = ("minItems", "maxItems") if isinstance(value, list) else ("minProperties", "maxProperties")
    if len(value) > schema.get(most, len(value)):
        message = f"Too many: {len(value)}: must have at most {schema[most]} items"
        yield Violation(path, message, "FieldValueTooMany")
    if len(value) < schema.get(least, 0):
        yield Violation(
            path, f"Invalid value: {len(value)}: {path} in body should have at least {schema[least]} items"
        )
