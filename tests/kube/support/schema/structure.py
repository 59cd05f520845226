"""Validation of a CRD's schema, as by the API server before it stores the CRD."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from .check import CRD_LIMIT, EXPRESSION_LIMIT, MAX_REQUEST, RuleError, check, declared
from .compiled import CompiledSchema
from .defaulting import default
from .syntax import names_in, parse
from .violation import Json, child

_KNOWN = frozenset(
    {
        "type",
        "description",
        "default",
        "enum",
        "format",
        "pattern",
        "nullable",
        "properties",
        "required",
        "items",
    }
    | {
        "additionalProperties",
        "anyOf",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "minLength",
    }
    | {"maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
    | {f"x-kubernetes-{name}" for name in ("validations", "int-or-string", "list-type", "list-map-keys")}
    | {"x-kubernetes-preserve-unknown-fields", "x-kubernetes-map-type"}
)
_INT_OR_STRING = [{"type": "integer"}, {"type": "string"}]


def faults(schema: Json) -> list[str]:
    """Return the errors of `openAPIV3Schema`, each with its path; [] if it is valid."""
    found = list(_faults(schema, "", transitions=True))
    total = 0 if found else sum(cost for _, cost in costs(schema))
    return [f"the rules cost {total}, at most {CRD_LIMIT} are allowed"] if total > CRD_LIMIT else found


def costs(schema: Json, path: str = "", times: int = 1) -> Iterator[tuple[str, int]]:
    """Yield path and rule with its worst-case cost over all entries of enclosing lists and maps."""
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"{path}: {rule['rule']}", times * check(rule["rule"], declared(schema))
    for name, inner in schema.get("properties", {}).items():
        yield from costs(inner, child(path, name), times)
    for bound, inside in (("maxItems", "items"), ("maxProperties", "additionalProperties")):
        if isinstance(schema.get(inside), dict):
            yield from costs(schema[inside], f"{path}[*]", times * schema.get(bound, MAX_REQUEST))


def _faults(schema: Json, path: str, *, transitions: bool) -> Iterator[str]:
    unknown = set(schema) - _KNOWN
    if unknown:
        yield f"{path}: {', '.join(sorted(unknown))} is not allowed"
    yield from _type_faults(schema, path)
    yield from _rule_faults(schema, path, transitions=transitions)
    if "default" in schema:
        yield from _default_faults(schema, path)
    for name, inner in schema.get("properties", {}).items():
        if (path, name) == ("", "metadata"):
            yield from _metadata_faults(inner)
        else:
            yield from _faults(inner, child(path, name), transitions=transitions)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _faults(schema["additionalProperties"], f"{path}[*]", transitions=transitions)
    if "items" in schema:
        keyed = transitions and schema.get("x-kubernetes-list-type") == "map"
        yield from _faults(schema["items"], f"{path}[*]", transitions=keyed)


def _type_faults(schema: Json, path: str) -> Iterator[str]:
    if schema.get("x-kubernetes-int-or-string"):
        if "type" in schema or schema.get("anyOf", _INT_OR_STRING) != _INT_OR_STRING:
            yield f"{path}: int-or-string has no type, and only the two alternatives"
        return
    if not isinstance(schema.get("type"), str):
        yield f"{path}: type is required"
    if "anyOf" in schema:
        yield f"{path}: anyOf is not allowed here"
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{path}: properties and additionalProperties exclude each other"
    if schema.get("type") == "array" and not isinstance(schema.get("items"), dict):
        yield f"{path}: items is required"
    for name in schema.get("required", ()):
        if name not in schema.get("properties", {}):
            yield f"{path}: required field {name} is not declared"
    yield from _keyed_list_faults(schema, path)


def _keyed_list_faults(schema: Json, path: str) -> Iterator[str]:
    keys = schema.get("x-kubernetes-list-map-keys", ())
    if (schema.get("x-kubernetes-list-type") == "map") != bool(keys):
        yield f"{path}: list-map-keys belong to list-type map"
    for key in keys:
        items = schema["items"]
        if key not in items.get("required", ()) and "default" not in items["properties"].get(key, {}):
            yield f"{path}: key {key} is neither required nor defaulted"
    if schema.get("x-kubernetes-list-type") == "set" and schema["items"].get("type") in {"object", "array"}:
        yield f"{path}: a set needs scalar entries"


def _metadata_faults(schema: Json) -> Iterator[str]:
    if set(schema) - {"type", "properties"} or set(schema.get("properties", {})) - {"name", "generateName"}:
        yield "metadata: only name and generateName may be restricted"


def _rule_faults(schema: Json, path: str, *, transitions: bool) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        try:
            cost = check(rule["rule"], declared(schema))
        except RuleError as error:
            yield f"{path}: {rule['rule']}: {error}"
            continue
        if cost > EXPRESSION_LIMIT:
            yield f"{path}: {rule['rule']} costs {cost}, at most {EXPRESSION_LIMIT} are allowed"
        if "oldSelf" in names_in(parse(rule["rule"])) and not transitions:
            yield f"{path}: {rule['rule']}: entries of this list cannot be told apart over time"
        if not _leads_somewhere(schema, rule.get("fieldPath", "")):
            yield f"{path}: fieldPath {rule['fieldPath']} is no field"
        if not rule.get("message") or "\n" in rule["message"] or len(rule["message"]) > 2048:
            yield f"{path}: {rule['rule']}: a message is one line"


def _leads_somewhere(schema: Json, field: str) -> bool:
    for name in filter(None, field.split(".")):
        if name not in schema.get("properties", {}):
            return False
        schema = schema["properties"][name]
    return not field or field.startswith(".")


def _default_faults(schema: Json, path: str) -> Iterator[str]:
    """A default must be valid and must include the defaults of its own fields."""
    holder = {
        "type": "object",
        "properties": {"value": {name: v for name, v in schema.items() if name != "default"}},
    }
    compiled = CompiledSchema(holder)
    written = {"value": schema["default"]}
    _, unknown = compiled.prune(written)
    if unknown:
        yield f"{path}: default has unknown fields {', '.join(unknown)}"
    for violation in compiled.validate(written, written):
        yield f"{path}: default: {violation.field}: {violation.message}"
    filled = copy.deepcopy(written)
    default(filled, holder)
    if filled != written:
        yield f"{path}: default is not complete: the fields below have defaults of their own"
