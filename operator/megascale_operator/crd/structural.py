"""Converts a pydantic model to the structural OpenAPI v3 schema that Kubernetes accepts.

Such a schema has no `$ref`, lists of types, `null` type, or unions other than int-or-string. References are
inlined, `X | None` becomes an optional X (the API server drops nulls of fields that are not nullable), and a
discriminated union becomes one object with CEL rules. Other constructs raise InexpressibleError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from megascale_operator.crd.cel_rule import CelRule, has, text

Schema = dict[str, Any]

_IGNORED: Final = frozenset({"title", "$defs", "discriminator"})
_KEPT: Final = frozenset(
    {"type", "description", "default", "enum", "format", "pattern"}
    | {
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
    }
)
_STRUCTURE: Final = frozenset(
    {"properties", "required", "items", "additionalProperties", "anyOf", "oneOf", "$ref"}
)
_SPECIAL: Final = frozenset({"const", "exclusiveMinimum", "exclusiveMaximum"})


class InexpressibleError(ValueError):
    """A construct of the pydantic model cannot be expressed in a CRD."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path or 'the root'}: {what}")


class _WithDefaults(GenerateJsonSchema):
    """Also includes the defaults that factories return, unless they depend on other fields."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default_factory_takes_data"):
            return super().default_schema(schema)
        factory = cast("Callable[[], object] | None", schema.get("default_factory"))
        if factory is not None:
            schema = core_schema.with_default_schema(schema["schema"], default=factory())
        return super().default_schema(schema)


def structural(model: type[BaseModel], keyed: Mapping[str, Sequence[str]], prefix: str) -> Schema:
    """Return the structural schema of `model`.

    Args:
        keyed: path of a list -> names of the fields that identify its entries (list type "map"), or () if
            the entries are identified by their value ("set"). Lists that are not named are "atomic".
        prefix: path of the model in the object, used in `keyed` and in error messages.

    Raises:
        InexpressibleError: names the field and the construct.
    """
    document = model.model_json_schema(by_alias=True, schema_generator=_WithDefaults)
    return _Translation(document.get("$defs", {}), keyed).node(document, prefix)


class _Translation:
    def __init__(self, definitions: Mapping[str, Schema], keyed: Mapping[str, Sequence[str]]) -> None:
        self._definitions = definitions
        self._keyed = keyed
        self._open: list[str] = []

    def node(self, source: Schema, path: str) -> Schema:
        if "$ref" in source:
            return self._inlined(source, path)
        unknown = set(source) - _IGNORED - _KEPT - _STRUCTURE - _SPECIAL
        if unknown:
            raise InexpressibleError(path, f"a CRD has no {', '.join(sorted(unknown))}")
        if "anyOf" in source:
            return self._union(source, path)
        if "discriminator" in source:
            return self._discriminated(source, path)
        found = {name: value for name, value in source.items() if name in _KEPT}
        if isinstance(found.get("type"), list):
            raise InexpressibleError(path, f"a CRD has no list of types {found['type']}")
        if "description" in found:
            found["description"] = " ".join(found["description"].split())
        if "default" in found:
            found["default"] = without_nulls(found["default"])
            if found["default"] is None:
                del found["default"]
        _limits(source, found)
        self._inside(source, found, path)
        _demand_bounds(found, path)
        return found

    def _inlined(self, source: Schema, path: str) -> Schema:
        name = source["$ref"].rpartition("/")[2]
        if name in self._open:
            raise InexpressibleError(path, f"{name} contains itself")
        self._open.append(name)
        siblings = {key: value for key, value in source.items() if key != "$ref"}
        found = self.node(self._definitions[name] | siblings, path)
        self._open.pop()
        return found

    def _union(self, source: Schema, path: str) -> Schema:
        """Convert `X | None` and int-or-string, the only unions that a structural schema supports."""
        members = [member for member in source["anyOf"] if member.get("type") != "null"]
        outer = {key: value for key, value in source.items() if key != "anyOf"}
        if len(members) == 1:
            return self.node(members[0] | outer, path)
        types = sorted(str(self._resolved(member).get("type")) for member in members)
        if types != ["integer", "string"]:
            raise InexpressibleError(path, f"a CRD has no union of {' and '.join(types)}")
        found = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
        for member in sorted(members, key=lambda member: str(member["type"])):
            part = self.node(member, path)
            if "enum" in part:
                part["pattern"] = f"^({'|'.join(part.pop('enum'))})$"
            found = {key: value for key, value in part.items() if key != "type"} | found
        outer_found = {name: value for name, value in outer.items() if name in {"description", "default"}}
        if "description" in outer_found:
            outer_found["description"] = " ".join(outer_found["description"].split())
        return outer_found | found

    def _resolved(self, member: Schema) -> Schema:
        if "$ref" not in member:
            return member
        return self._definitions[member["$ref"].rpartition("/")[2]] | {
            key: value for key, value in member.items() if key != "$ref"
        }

    def _inside(self, source: Schema, found: Schema, path: str) -> None:
        """Convert properties, items, entries of maps, and `oneOf`."""
        extra = source.get("additionalProperties", False)
        if "properties" in source:
            found["properties"] = {
                name: self.node(inner, f"{path}.{name}".removeprefix("."))
                for name, inner in source["properties"].items()
            }
            required = [
                name for name in source.get("required", ()) if "default" not in found["properties"][name]
            ]
            if required:
                found["required"] = required
        if isinstance(extra, dict) and extra:
            if "properties" in source:
                raise InexpressibleError(path, "a CRD has no typed additionalProperties beside properties")
            found["additionalProperties"] = self.node(extra, path)
        elif extra is True or (extra == {} and "additionalProperties" in source):
            found["x-kubernetes-preserve-unknown-fields"] = True
        if "items" in source:
            found["items"] = self.node(source["items"], path)
            found |= self._list_type(path)
        if "oneOf" in source:
            found.setdefault("x-kubernetes-validations", []).append(_exactly_one(source["oneOf"], path))

    def _list_type(self, path: str) -> Schema:
        if path not in self._keyed:
            return {"x-kubernetes-list-type": "atomic"}
        keys = list(self._keyed[path])
        if not keys:
            return {"x-kubernetes-list-type": "set"}
        return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys}

    def _discriminated(self, source: Schema, path: str) -> Schema:
        """Convert to one object with the fields of all variants, and rules for which fields each one has."""
        tag: str = source["discriminator"]["propertyName"]
        variants = {
            value: self.node({"$ref": reference}, path)
            for value, reference in source["discriminator"]["mapping"].items()
        }
        properties: Schema = {}
        for name, inner in (
            (n, i) for variant in variants.values() for n, i in variant["properties"].items()
        ):
            if name != tag and properties.setdefault(name, inner) != inner:
                raise InexpressibleError(path, f"variants of the union mean different things by {name}")
        properties[tag] = {"type": "string", "enum": list(variants)}
        rules = [
            _variant_rule(
                tag, value, variant, [name for name in properties if name not in variant["properties"]]
            )
            for value, variant in variants.items()
        ]
        found = {"type": "object", "properties": properties, "required": [tag]}
        return found | {"x-kubernetes-validations": rules} | _described(source)


def without_nulls(value: Any) -> Any:  # noqa: ANN401
    """Return `value` without null fields, which are equivalent to fields that are not given."""
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def _described(source: Schema) -> Schema:
    return {"description": " ".join(source["description"].split())} if "description" in source else {}


def _limits(source: Schema, found: Schema) -> None:
    if "const" in source:
        found["enum"] = [source["const"]]
    for bound in ("minimum", "maximum"):
        exclusive = f"exclusive{bound.capitalize()}"
        if exclusive in source:
            found |= {bound: source[exclusive], exclusive: True}


def _demand_bounds(found: Schema, path: str) -> None:
    """Raise InexpressibleError for a field without a bound.

    The API server estimates the cost of CEL rules from the bounds and rejects rules over unbounded fields.
    """
    match found.get("type"):
        case "string":
            bounded = {"maxLength", "enum", "format"} & set(found)
        case "array":
            bounded = {"maxItems"} & set(found)
        case "object":
            bounded = {"properties", "maxProperties", "x-kubernetes-preserve-unknown-fields"} & set(found)
        case "integer":
            bounded = set() if {"minimum", "maximum"} - set(found) else {"maximum"}
        case "number" | "boolean":
            return
        case other:
            raise InexpressibleError(path, f"a CRD has no type {other}")
    if not bounded:
        raise InexpressibleError(path, f"a {found['type']} needs a bound")


def _exactly_one(alternatives: Sequence[Schema], path: str) -> Schema:
    """Convert a `oneOf` of single required fields to a CEL rule."""
    names = [alternative.get("required", [""])[0] for alternative in alternatives]
    if [{"required": [name]} for name in names] != list(alternatives):
        raise InexpressibleError(path, "a CRD has oneOf only over single required fields")
    given = ", ".join(has("self", name) for name in names)
    return CelRule(
        f"[{given}].exists_one(given, given)", f"exactly one of {', '.join(names)} must be given"
    ).schema()


def _variant_rule(tag: str, value: str, variant: Schema, foreign: Sequence[str]) -> Schema:
    needed = [name for name in variant.get("required", ()) if name != tag]
    terms = [has("self", name) for name in needed] + [f"!{has('self', name)}" for name in foreign]
    words = [f"needs {', '.join(needed)}"] * bool(needed) + [f"has no {', '.join(foreign)}"] * bool(foreign)
    expression = " && ".join([f"self.{tag} == {text(value)}", *terms])
    rule = CelRule(f"self.{tag} != {text(value)} || ({expression})", f"{tag} {value} {' and '.join(words)}")
    return rule.schema()
