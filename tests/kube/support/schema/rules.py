"""CEL rules (`x-kubernetes-validations`) of a schema, evaluated over an object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cel

from .listtypes import keys_of
from .violation import Json, Violation, child

_MISSING: Any = object()


@dataclass(frozen=True, slots=True)
class _Rule:
    program: cel.Program
    source: Json
    is_transition: bool


@dataclass(frozen=True, slots=True)
class _Node:
    """A node of the schema that has rules at or below it."""

    rules: tuple[_Rule, ...]
    properties: Mapping[str, _Node]
    inner: _Node | None
    schema: Json


class CompiledRules:
    """The rules of a schema; parts of the schema without rules are not visited.

    Raises:
        ValueError: a rule cannot be parsed.
    """

    def __init__(self, schema: Json) -> None:
        self._root = _compile(schema, "")

    def violations(self, obj: Json, old: Json | None) -> list[Violation]:
        """Return the violated rules; those with `oldSelf` apply only where the old object has a value."""
        if self._root is None:
            return []
        return list(_violations(self._root, obj, _MISSING if old is None else old, ""))


def _compile(schema: Json, path: str) -> _Node | None:
    rules = tuple(_rule(source, path) for source in schema.get("x-kubernetes-validations", ()))
    properties = {}
    for name, inner in schema.get("properties", {}).items():
        node = _compile(inner, child(path, name))
        if node is not None:
            properties[name] = node
    entries = schema.get("items", schema.get("additionalProperties"))
    inside = _compile(entries, f"{path}[*]") if isinstance(entries, dict) else None
    if not rules and not properties and inside is None:
        return None
    return _Node(rules, properties, inside, schema)


def _rule(source: Json, path: str) -> _Rule:
    try:
        program = cel.compile(source["rule"])
    except ValueError as error:
        raise ValueError(f"{path}: {source['rule']}: {error}") from error
    return _Rule(program, source, "oldSelf" in source["rule"])


def _violations(node: _Node, value: Any, old: Any, path: str) -> Iterator[Violation]:
    if value is None:
        return
    if node.rules:
        yield from _broken(node, value, old, path)
    if isinstance(value, dict):
        for name, inner in value.items():
            below = node.properties.get(
                name, node.inner if name not in node.schema.get("properties", {}) else None
            )
            if below is not None:
                before = old.get(name, _MISSING) if isinstance(old, dict) else _MISSING
                yield from _violations(below, inner, before, child(path, name))
    elif isinstance(value, list) and node.inner is not None:
        keyed = _by_key(old, node.schema)
        for index, item in enumerate(value):
            before = keyed.get(keys_of(item, node.schema), _MISSING)
            yield from _violations(node.inner, item, before, child(path, index))


def _by_key(old: Any, schema: Json) -> dict[str, Any]:
    """Return the old entries of a keyed list by key, {} for other lists, whose entries have no identity."""
    if schema.get("x-kubernetes-list-type") != "map" or not isinstance(old, list):
        return {}
    return {keys_of(item, schema): item for item in old}


def _broken(node: _Node, value: Any, old: Any, path: str) -> Iterator[Violation]:
    context = {"self": _seen(value, node.schema)}
    if old is not _MISSING:
        context["oldSelf"] = _seen(old, node.schema)
    for rule in node.rules:
        if rule.is_transition and old is _MISSING:
            continue
        message = _verdict(rule, context, node.schema.get("type", ""))
        if message is not None:
            place = f"{path}{rule.source.get('fieldPath', '')}".removeprefix(".")
            yield Violation(place, message, rule.source.get("reason", "FieldValueInvalid"))


def _verdict(rule: _Rule, context: Json, kind: str) -> str | None:
    """Return the violation's message, None if the rule holds."""
    try:
        holds = rule.program.execute(context)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        return f'Invalid value: "{kind}": rule evaluation error: {rule.source["rule"]}: {error}'
    if holds is True:
        return None
    words = rule.source.get("message", f"failed rule: {rule.source['rule']}")
    if rule.source.get("reason") == "FieldValueRequired":
        return f"Required value: {words}"
    return f'Invalid value: "{kind}": {words}'


def _seen(value: Any, schema: Json) -> Any:
    """Return the value as rules see it: `number` fields are doubles, null fields are absent."""
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        inside = {
            name: (inner, properties.get(name, extra)) for name, inner in value.items() if inner is not None
        }
        return {
            name: _seen(inner, known) for name, (inner, known) in inside.items() if isinstance(known, dict)
        }
    if isinstance(value, list):
        return [_seen(item, schema.get("items", {})) for item in value]
    if schema.get("type") == "number":
        return float(value)
    return value
