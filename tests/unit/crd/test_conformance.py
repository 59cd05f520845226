"""One corpus, one verdict: pydantic, and the CRD as an API server reads it."""

from __future__ import annotations

from typing import Any

import pytest
from megascale_operator.crd.nodecheck import NodeCheck
from pydantic import ValidationError
from schema.compiled import CompiledSchema
from schema.corpus import Case, cases, openapi_schema

from megascale.errors import ManifestError
from megascale.job import from_mapping, parse_job, resolved_yaml

SCHEMAS = {
    "TrainingJob": CompiledSchema(openapi_schema("trainingjobs")),
    "NodeCheck": CompiledSchema(openapi_schema("nodechecks")),
}
ALL = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)


def stored(schema: CompiledSchema, manifest: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    obj, unknown = schema.prune(manifest)
    return schema.default(obj), unknown


def fields_refused_by_models(manifest: dict[str, Any]) -> list[str]:
    if manifest["kind"] == "NodeCheck":
        try:
            NodeCheck.model_validate(manifest)
        except ValidationError as error:
            return [place for details in error.errors() for place in _places(details)]
        return []
    try:
        from_mapping(manifest)
    except ManifestError as error:
        return [issue.path for issue in error.issues]
    return []


def _places(details: Any) -> list[str]:
    problems = details.get("ctx", {}).get("problems", ())
    paths = [(*details["loc"], *problem.path) for problem in problems] or [details["loc"]]
    return ["".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)[1:] for path in paths]


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    names = [case.name for case in cases()]
    assert len(names) >= 200
    assert len(set(names)) == len(names)
    assert sum(case.refused is None for case in cases()) >= 60


@ALL
def test_models(case: Case) -> None:
    if case.update is not None:
        assert fields_refused_by_models(case.manifest) == []
        return
    fields = fields_refused_by_models(case.manifest)
    if case.refused is None:
        assert fields == []
    else:
        assert case.refused in fields


@ALL
def test_crd(case: Case) -> None:
    schema = SCHEMAS[case.kind]
    created, unknown = stored(schema, case.manifest)
    if case.update is None:
        fields = [*unknown, *(violation.field for violation in schema.validate(created))]
    else:
        assert [*unknown, *schema.validate(created)] == []
        updated, unknown = stored(schema, case.update)
        fields = [*unknown, *(violation.field for violation in schema.validate(updated, created))]
    if case.refused is None:
        assert fields == []
    else:
        assert any(case.blames(field) for field in fields), fields


@pytest.mark.parametrize(
    "case",
    [case for case in cases() if case.refused is None and case.kind == "TrainingJob"],
    ids=lambda case: case.name,
)
def test_what_is_stored_means_the_same(case: Case) -> None:
    """Defaults that the API server writes into the object change nothing."""
    manifest = case.update or case.manifest
    again, unknown = stored(SCHEMAS[case.kind], manifest)
    assert unknown == []
    assert from_mapping(again) == from_mapping(manifest)
    resolved = parse_job(resolved_yaml(from_mapping(manifest)))
    assert resolved == from_mapping(manifest)


def test_every_rule_is_broken_by_some_manifest() -> None:
    """A rule that never speaks up could be missing, or wrong, unnoticed."""
    rules = {name: set(_messages(openapi_schema(name))) for name in ("trainingjobs", "nodechecks")}
    spoken: dict[str, set[str]] = {name: set() for name in rules}
    for case in cases():
        schema = SCHEMAS[case.kind]
        before = stored(schema, case.manifest)[0]
        now = before if case.update is None else stored(schema, case.update)[0]
        found = schema.validate(now, None if case.update is None else before)
        spoken[f"{case.kind.lower()}s"] |= {violation.message.partition(": ")[2] for violation in found}
    for name, messages in rules.items():
        silent = {message for message in messages if not any(message in said for said in spoken[name])}
        assert silent == set()


def _messages(schema: dict[str, Any]) -> list[str]:
    found = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    inside = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    return found + [message for inner in inside if isinstance(inner, dict) for message in _messages(inner)]
