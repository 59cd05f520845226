"""The examples are valid for `megascale run` and for an API server."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML
from schema.compiled import CompiledSchema
from schema.corpus import openapi_schema

from megascale.job import from_mapping, load_job

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
EXAMPLES.append(EXAMPLES[0].parent / "ddp" / "job.yaml")
SCHEMA = CompiledSchema(openapi_schema("trainingjobs"))


def test_the_examples_are_there() -> None:
    assert {"quickstart.yaml", "175b.yaml", "ddp.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_both_take_it_and_mean_the_same(path: Path) -> None:
    obj, unknown = SCHEMA.prune(YAML(typ="safe", pure=True).load(path))
    stored = SCHEMA.default(obj)
    assert unknown == []
    assert SCHEMA.validate(stored) == []
    assert from_mapping(stored) == load_job(path)


def test_the_large_one_is_the_papers() -> None:
    spec = load_job(EXAMPLES[0].parent / "175b.yaml").spec
    assert (spec.nodes, spec.world_size) == (1536, 12_288)
    assert spec.runtime.megatron is not None
    assert spec.runtime.megatron.parallelism.data == 192
    assert len(spec.node_counts) > 1
