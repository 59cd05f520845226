"""Layouts drawn at random: whatever pydantic says about their arithmetic, the rules of the CRD say too."""

from __future__ import annotations

from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st
from schema.compiled import CompiledSchema
from schema.corpus import openapi_schema

from megascale.errors import ManifestError
from megascale.job import from_mapping
from megascale.job.presets import PRESETS

SCHEMA = CompiledSchema(openapi_schema("trainingjobs"))
Json = dict[str, Any]
small = st.integers(1, 4)


@st.composite
def fitting(draw: st.DrawFn) -> Json:
    """A spec whose numbers fit together: products of drawn factors."""
    tensor, pipeline, data, micro = draw(small), draw(small), draw(small), draw(small)
    interleave = draw(small) if pipeline > 1 else 1
    heads, experts = tensor * draw(small), draw(st.sampled_from([None, None, 2]))
    waves = draw(small) * (pipeline if interleave > 1 else 1)
    world = tensor * pipeline * data
    per_node = draw(st.sampled_from([n for n in range(1, world + 1) if world % n == 0]))
    model = {
        "numLayers": pipeline * interleave * draw(small),
        "hiddenSize": heads * 2 * draw(small),
        "attentionHeads": heads,
        "ffnHiddenSize": tensor * draw(small),
    }
    if experts:
        model |= {"experts": experts, "expertsPerToken": draw(st.integers(1, 2))}
    layout = {
        "tensor": tensor,
        "pipeline": pipeline,
        "interleave": interleave,
        "sequence": tensor > 1 and (bool(experts) or draw(st.booleans())),
    }
    batch = {
        "path": "x",
        "sequenceLength": tensor * draw(small),
        "microBatch": micro,
        "globalBatch": micro * data * waves,
    }
    unit = micro * data * (pipeline if interleave > 1 else 1)
    if draw(st.booleans()) and batch["globalBatch"] > unit:
        batch |= {"batchRamp": {"start": unit, "increment": unit, "everySteps": 10}}
    size = {"nodes": world // per_node, "ranksPerNode": per_node, "steps": 100}
    return size | {"runtime": {"megatron": {"model": model, "parallelism": layout, "data": batch}}}


MODEL, LAYOUT, DATA = (f"runtime.megatron.{name}" for name in ("model", "parallelism", "data"))
changes = st.one_of(
    st.tuples(
        st.sampled_from(
            ["nodes", "minNodes", "ranksPerNode"]
            + [
                f"{MODEL}.{n}"
                for n in ("numLayers", "hiddenSize", "attentionHeads", "kvHeads", "ffnHiddenSize")
            ]
            + [f"{MODEL}.{n}" for n in ("experts", "expertsPerToken")]
            + [f"{LAYOUT}.{n}" for n in ("tensor", "pipeline", "interleave", "context")]
            + [f"{DATA}.{n}" for n in ("sequenceLength", "microBatch", "globalBatch")]
        ),
        st.integers(1, 12),
    ),
    st.tuples(st.just(f"{MODEL}.preset"), st.sampled_from(sorted(PRESETS))),
    st.tuples(st.just(f"{MODEL}.block"), st.sampled_from(["parallel", "serial"])),
    st.tuples(st.just(f"{LAYOUT}.sequence"), st.booleans()),
    st.tuples(st.just(f"{MODEL}.vocabSize"), st.sampled_from([256, 257])),
    st.tuples(st.just(f"{DATA}.prepareFrom"), st.just(["y"])),
    st.tuples(
        st.just(f"{DATA}.batchRamp"),
        st.fixed_dictionaries(dict.fromkeys(("start", "increment", "everySteps"), st.integers(1, 8))),
    ),
)
omissions = st.sampled_from(
    [f"{MODEL}.{n}" for n in ("numLayers", "hiddenSize", "attentionHeads", "ffnHiddenSize")]
)


def put(spec: Json, path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        spec = spec[section]
    if value is None:
        spec.pop(name, None)
    else:
        spec[name] = value


def verdicts(spec: Json) -> tuple[set[str], set[str]]:
    """Fields that the CRD refuses, fields that pydantic refuses."""
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "x"}}
    stored = SCHEMA.default(head | {"spec": spec})
    by_rules = {violation.field for violation in SCHEMA.validate(stored)}
    try:
        from_mapping(head | {"spec": spec})
    except ManifestError as error:
        return by_rules, {issue.path for issue in error.issues}
    return by_rules, set()


@settings(max_examples=400, deadline=None)
@given(fitting(), st.lists(changes, max_size=2), st.lists(omissions, max_size=1))
def test_layouts(spec: Json, changed: list[tuple[str, Any]], omitted: list[str]) -> None:
    """Pydantic looks at a section once the sections inside of it are right, so it may name fewer fields."""
    for path, value in [*changed, *((path, None) for path in omitted)]:
        put(spec, path, value)
    by_rules, by_models = verdicts(spec)
    event("refused" if by_models else "valid")
    assert bool(by_rules) == bool(by_models), (by_rules, by_models)
    assert by_models <= by_rules


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 31),
    st.integers(1, 7),
    st.one_of(st.integers(1, 86_400), st.integers(590, 610), st.integers(60, 70)),
)
def test_the_patience_of_the_transport(exponent: int, tries: int, timeout_s: int) -> None:
    network = {"ibTimeout": exponent, "ibRetryCount": tries, "ncclTimeoutSeconds": timeout_s}
    by_rules, by_models = verdicts({"steps": 1, "runtime": {"command": {"args": ["x"]}}, "network": network})
    assert by_rules == by_models
