"""The CRDs are what an API server takes: structural, bounded, with rules that compile and cost little."""

from __future__ import annotations

from typing import Any

import pytest
from megascale_operator.crd.generate import KINDS, definition
from schema.check import CRD_LIMIT, EXPRESSION_LIMIT
from schema.compiled import CompiledSchema
from schema.corpus import openapi_schema
from schema.structure import costs, faults

PLURALS = ("trainingjobs", "nodechecks")
TEXT = {"type": "string", "maxLength": 10}
LIST = {"type": "array", "items": TEXT}


@pytest.mark.parametrize("plural", PLURALS)
def test_nothing_to_refuse(plural: str) -> None:
    assert faults(openapi_schema(plural)) == []


@pytest.mark.parametrize("plural", PLURALS)
def test_rules_cost_a_tenth_of_what_is_allowed_at_most(plural: str) -> None:
    """The estimate is ours, so a margin is kept."""
    found = [cost for _, cost in costs(openapi_schema(plural))]
    assert max(found) * 10 <= EXPRESSION_LIMIT
    assert sum(found) * 10 <= CRD_LIMIT


@pytest.mark.parametrize("plural", PLURALS)
def test_every_field_is_described_for_kubectl_explain(plural: str) -> None:
    silent = [
        path
        for path, node in fields(openapi_schema(plural), "")
        if not node.get("description", "").endswith(".") and not path.startswith(".metadata")
    ]
    assert silent == []


def fields(schema: dict[str, Any], path: str) -> list[tuple[str, dict[str, Any]]]:
    inside = schema
    while "items" in inside or isinstance(inside.get("additionalProperties"), dict):
        inside = inside.get("items") or inside["additionalProperties"]
    return [
        found
        for name, inner in inside.get("properties", {}).items()
        for found in ((f"{path}.{name}", inner), *fields(inner, f"{path}.{name}"))
    ]


def test_status_has_no_floats() -> None:
    """Clients print and compare them differently."""
    assert [
        path
        for path, node in fields(openapi_schema("trainingjobs")["properties"]["status"], "")
        if node["type"] == "number"
    ] == []


def test_conditions_are_a_bounded_map() -> None:
    for plural in PLURALS:
        conditions = openapi_schema(plural)["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-type"] == "map"
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]
        assert conditions["maxItems"] <= 16


def test_what_kubectl_shows() -> None:
    job, check = (definition(kind)["spec"] for kind in KINDS)
    columns = job["versions"][0]["additionalPrinterColumns"]
    assert [c["name"] for c in columns if not c.get("priority")] == [
        "State", "Nodes", "Step", "MFU", "Goodput", "Restarts", "Age"
    ]  # fmt: skip
    assert [c["name"] for c in columns if c.get("priority")] == ["Checkpoint", "Fault", "Node"]
    assert (job["names"]["shortNames"], check["names"]["shortNames"]) == (["tj"], ["nc"])
    assert (job["scope"], check["scope"]) == ("Namespaced", "Cluster")
    assert job["versions"][0]["subresources"] == {"status": {}}
    for column in columns:
        node: dict[str, Any] = openapi_schema("trainingjobs")
        for name in column["jsonPath"].split(".")[1:]:
            if name == "creationTimestamp":
                break
            node = node["properties"][name]
        else:
            assert node["type"] == column["type"]


@pytest.mark.parametrize(
    ("properties", "rule", "fault"),
    [
        ({"a": {"type": "integer"}}, "self.a > 1.0", "no matching overload for '>' applied to (int, double)"),
        ({"a": {"type": "integer"}}, "self.b > 1", "undefined field 'b'"),
        ({"a": {"type": "integer"}}, "self.a", "expected bool"),
        ({"a": {"type": "integer"}}, "has(self.a) ? self.a : 'x'", "no matching overload for '?:'"),
        ({"a": LIST}, "self.a.all(x, self.a.all(y, x == y))", "at most 10000000 are allowed"),
        ({"a": LIST | {"maxItems": 10}}, "self.a.all(x, self.a.all(y, x == y))", None),
        ({"a": {"type": "string"}}, "self.a.contains(self.a)", "at most 10000000 are allowed"),
        ({"a": {"type": "integer", "default": 1}}, "self.a > 1", None),
        ({"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}, "true", "type is required"),
        (
            {"a": {"type": "object", "properties": {"b": TEXT | {"default": "b"}}, "default": {}}},
            "true",
            "not complete",
        ),
        ({"a": TEXT | {"default": "a text too long"}}, "true", "Too long"),
        ({"a": {"$ref": "#/x"}}, "true", "$ref is not allowed"),
    ],
)
def test_what_would_be_refused(properties: dict[str, Any], rule: str, fault: str | None) -> None:
    schema = {
        "type": "object",
        "properties": properties,
        "x-kubernetes-validations": [{"rule": rule, "message": "m"}],
    }
    found = faults(schema)
    assert any(fault in text for text in found) if fault else found == []


def test_transitions_in_lists_need_keys() -> None:
    entry = {"type": "object", "properties": {"k": TEXT, "v": TEXT}, "required": ["k"]}
    entry["x-kubernetes-validations"] = [{"rule": "self.v == oldSelf.v", "message": "v is fixed"}]
    keyed = {
        "type": "array",
        "maxItems": 9,
        "items": entry,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["k"],
    }
    plain = {"type": "array", "maxItems": 9, "items": entry}
    assert faults({"type": "object", "properties": {"a": keyed}}) == []
    assert "cannot be told apart" in faults({"type": "object", "properties": {"a": plain}})[0]
    compiled = CompiledSchema({"type": "object", "properties": {"a": keyed}})
    old = {"a": [{"k": "1", "v": "x"}, {"k": "2", "v": "y"}]}
    new = {"a": [{"k": "2", "v": "y"}, {"k": "1", "v": "z"}, {"k": "3", "v": "w"}]}
    assert [violation.field for violation in compiled.validate(new, old)] == ["a[1]"]


def test_nulls_are_defaulted_or_dropped() -> None:
    schema = {
        "type": "object",
        "properties": {"a": TEXT | {"default": "x"}, "b": TEXT, "c": TEXT | {"nullable": True}},
    }
    compiled = CompiledSchema(schema)
    assert compiled.default({"a": None, "b": None, "c": None}) == {"a": "x", "c": None}
    assert compiled.validate({"a": "x", "c": None}) == []


def test_pruning_stops_where_fields_are_passed_through() -> None:
    open_section = {"type": "object", "properties": {"b": {"type": "object", "properties": {"c": TEXT}}}}
    open_section["x-kubernetes-preserve-unknown-fields"] = True
    compiled = CompiledSchema({"type": "object", "properties": {"a": open_section}})
    obj = {"kind": "X", "a": {"b": {"c": "1", "d": 2}, "e": {"f": 3}}, "g": 4}
    pruned, unknown = compiled.prune(obj)
    assert pruned == {"kind": "X", "a": {"b": {"c": "1"}, "e": {"f": 3}}}
    assert sorted(unknown) == ["a.b.d", "g"]
