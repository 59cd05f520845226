"""What the schema says about itself."""

from __future__ import annotations

import pytest

from megascale.errors import InputError
from megascale.job.describe import all_fields
from megascale.job.lookup import look_up

EVERY_PATH = sorted(path for paths in all_fields().values() for path in paths)


def test_there_are_no_undiscovered_sections() -> None:
    assert {
        "spec.runtime.megatron.optimizer.schedule.warmupSteps",
        "spec.recovery.overrides.match.cause",
    } <= set(EVERY_PATH)
    assert len(EVERY_PATH) > 70


@pytest.mark.parametrize("path", EVERY_PATH)
def test_every_field_is_described(path: str) -> None:
    field = look_up(path).field
    assert len(field.description) >= 15
    assert field.description.endswith(".")
    assert field.expected


@pytest.mark.parametrize(
    ("text", "type_name", "default", "expected"),
    [
        ("spec.nodes", "integer", "1", "a whole number from 1 to 100000"),
        ("spec.steps", "integer", None, "a whole number from 1 to 1000000000"),
        ("spec.spareNodes", "integer or string", '"auto"', "a whole number >= 0, or auto"),
        ("spec.minNodes", "integer", "nodes", "a whole number from 1 to 100000"),
        ("spec.runtime.megatron.optimizer.lr", "number", "0.002", "a number > 0 and <= 100"),
        ("spec.runtime.megatron.optimizer.clipGrad", "number", "1.0", "a number >= 0"),
        (
            "spec.runtime.megatron.model.window",
            "integer",
            "null",
            "a whole number from 1 to 2147483647 or null",
        ),
        ("spec.remediation.mode", "string", '"Observe"', "one of Observe, Annotate, Enforce"),
        ("spec.faults[0].rank", "integer", "null", "a whole number from 0 to 2147483647 or null"),
        ("spec.detection.hang.steps", "number", "3.0", "a number from 1 to 1000"),
        ("spec.detection.lemon.windowSeconds", "integer", "1209600", "a whole number from 1 to 7776000"),
        ("spec.detection.shadow", "[]string", "[]", "a list of at most 5 entries"),
        ("spec.checkpoint.cadence", "string", '"fixed"', "one of fixed, auto"),
        (
            "spec.logRules.match.pattern",
            "string",
            "null",
            "a regular expression of 1 to 512 characters without backreferences or lookaround or null",
        ),
        (
            "spec.logRules.action",
            "string",
            "null",
            "one of none, restart, replace_node, fail_job, alert or null",
        ),
        ("spec.faults", "[]object", "[]", "a list of at most 256 entries"),
        ("spec.checkpoint.memory.enabled", "boolean", "true", "true or false"),
        (
            "spec.runtime.command.env",
            "map of string",
            "{}",
            "a mapping of at most 256 entries from text to text of at most 32768 characters",
        ),
        ("trainingjob.spec.template", "object", "{}", "a section with any of metadata, spec"),
    ],
)
def test_fields(text: str, type_name: str, default: str | None, expected: str) -> None:
    field = look_up(text).field
    assert (field.type, field.default, field.expected) == (type_name, default, expected)


def test_sections_list_their_fields() -> None:
    explained = look_up("spec.faults")
    assert explained.field.fields == ("kind", "rank", "node", "step", "point")
    assert [child.path for child in explained.children][:2] == ["spec.faults.kind", "spec.faults.rank"]
    assert [child.path for child in look_up("").children] == ["apiVersion", "kind", "metadata", "spec"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spec.runtime.megatron.optimiser", "did you mean spec.runtime.megatron.optimizer?"),
        ("spec.ranks_per_node", "did you mean spec.ranksPerNode?"),
        ("lr", "did you mean spec.runtime.megatron.optimizer.lr?"),
        ("spec.runtime.warmup_step", "did you mean spec.runtime.megatron.optimizer.schedule.warmupSteps?"),
        ("spec.nodes.x1", "it has no fields"),
        ("spec.checkpoint.zzzz", "it has uri, everySteps, cadence, saveSeconds, keep, memory"),
    ],
)
def test_unknown_fields_get_the_nearest(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        look_up(text)
    assert message in str(caught.value)
