"""Manifests that are right: values, defaults, presets, and the way back to a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascale.checkpoint.storage import open_storage
from megascale.errors import InputError, ManifestError
from megascale.job import (
    Fault,
    TrainingJob,
    canonical_json,
    from_mapping,
    load_job,
    parse_job,
    read_revision,
    resolved_yaml,
    revision_of,
    to_mapping,
    with_faults,
)
from megascale.job.megatron import Megatron, PresetName
from megascale.job.presets import PRESETS

OVERRIDABLE_RULES = ("pumps", "logRules[1]", "xid-94", "python-exception", "node-checks")
CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))
FULL, COMMAND, COMPACT = (
    Path(__file__).parent / "corpus" / n for n in ("full.yaml", "command.yaml", "compact.json")
)


def megatron(job: TrainingJob) -> Megatron:
    assert job.spec.runtime.megatron is not None
    return job.spec.runtime.megatron


def mapping(**megatron_fields: Any) -> dict[str, Any]:
    data = {"path": "d", "sequenceLength": 8, "microBatch": 1, "globalBatch": 4}
    return {
        "apiVersion": "megascale.io/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "job"},
        "spec": {
            "steps": 10,
            "runtime": {"megatron": {"model": {"preset": "tiny"}, "data": data} | megatron_fields},
        },
    }


@pytest.mark.parametrize("path", [*CORPUS, *EXAMPLES], ids=lambda path: path.name)
def test_every_way_back_gives_the_same_job(path: Path) -> None:
    job = load_job(path)
    assert parse_job(resolved_yaml(job)) == job
    assert from_mapping(to_mapping(job)) == job
    assert TrainingJob.model_validate(job.model_dump(by_alias=True)) == job
    assert revision_of(parse_job(resolved_yaml(job))) == revision_of(job)


def test_the_full_corpus_file_leaves_no_field_at_its_default() -> None:
    def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        return {
            path: leaf
            for name, value in data.items()
            for path, leaf in (
                flat(value, f"{prefix}{name}.").items()
                if isinstance(value, dict)
                else [(prefix + name, value)]
            )
        }

    written, defaults = flat(to_mapping(load_job(FULL))), flat(to_mapping(from_mapping(mapping())))
    ones = {f"spec.runtime.megatron.parallelism.{name}" for name in ("context", "expert")}
    same = {path for path, value in written.items() if defaults.get(path) == value}
    assert same == ones | {"apiVersion", "kind", "spec.runtime.megatron.data.blend"}


def test_defaults() -> None:
    spec = from_mapping(mapping()).spec
    assert (spec.nodes, spec.ranks_per_node, spec.spare_nodes, spec.min_nodes) == (1, 1, "auto", 1)
    assert (spec.checkpoint.uri, spec.checkpoint.every_steps, spec.checkpoint.keep) == (None, 50, 3)
    assert (spec.health.heartbeat_seconds, spec.health.silence_seconds, spec.health.orphan_seconds) == (
        2,
        15,
        60,
    )
    assert (spec.recovery.max_restarts, spec.remediation.mode, spec.faults) == (100, "Observe", [])


def test_three_e_minus_four_is_a_number() -> None:
    assert megatron(load_job(FULL)).optimizer.lr == 0.0003


def test_data_parallel_size_is_what_remains() -> None:
    job = load_job(FULL)
    assert job.spec.world_size == 16
    assert megatron(job).parallelism.ranks_per_replica == 4
    assert megatron(job).parallelism.data == 4


def test_node_counts_are_those_the_layout_fits() -> None:
    # 2 nodes hold a copy of the model: 5 and 7 do not fit, and 6 are 3 copies, which do not share 32 samples
    assert load_job(FULL).spec.node_counts == (8, 4)
    assert load_job(COMMAND).spec.node_counts == (3, 2, 1)


def test_min_nodes_defaults_to_nodes() -> None:
    data = mapping()
    data["spec"] |= {"nodes": 4}
    assert from_mapping(data).spec.min_nodes == 4


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_every_shape(preset: str) -> None:
    model = megatron(from_mapping(mapping(model={"preset": preset}))).model
    for name, value in PRESETS[preset].items():
        assert getattr(model, name) == value
    assert model.attention_heads % model.kv_heads == 0
    assert preset in get_args(PresetName)


def test_fields_beside_a_preset_win() -> None:
    model = megatron(from_mapping(mapping(model={"preset": "tiny", "hiddenSize": 64, "window": 9}))).model
    assert (model.num_layers, model.hidden_size, model.ffn_hidden_size, model.window) == (4, 64, 256, 9)


def test_null_beside_a_preset_is_the_presets_value() -> None:
    """As on an API server, which drops nulls."""
    model = megatron(from_mapping(mapping(model={"preset": "tiny", "window": None}))).model
    assert model.window == PRESETS["tiny"]["window"]


def test_llama_is_not_overridden_by_defaults_in_the_json_schema() -> None:
    """An API server would write them into the object, where they win over the preset."""
    model = TrainingJob.model_json_schema()["$defs"]["Model"]
    assert "required" not in model
    assert not any("default" in field for field in model["properties"].values())


def test_kubernetes_metadata_passes_through_and_status_is_ignored() -> None:
    metadata = to_mapping(load_job(FULL))["metadata"]
    assert metadata["namespace"] == "research"
    assert metadata["labels"] == {"team": "pretraining"}


def test_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    text = COMMAND.read_text().replace("\n", "\r\n")
    assert parse_job(b"\xef\xbb\xbf" + text.encode()) == load_job(COMMAND)


def test_empty_documents_around_the_job_are_ignored() -> None:
    assert parse_job(f"---\n{COMMAND.read_text()}\n---\n") == load_job(COMMAND)


def test_a_revision_changes_with_any_value_of_the_spec_and_with_the_name_alone() -> None:
    first = from_mapping(mapping(seed=1))
    assert revision_of(first) != revision_of(from_mapping(mapping(seed=2)))
    stored = mapping(seed=1)
    stored["metadata"] |= {"resourceVersion": "7", "labels": {"team": "a"}}
    assert revision_of(from_mapping(stored)) == revision_of(first)
    stored["metadata"]["name"] = "another"
    assert revision_of(from_mapping(stored)) != revision_of(first)


def test_a_revision_is_read_back_and_refused_when_it_is_another() -> None:
    job = from_mapping(mapping(seed=1))
    text, revision = canonical_json(job), revision_of(job)
    assert len(revision) == 64
    assert revision_of(read_revision(text, revision)) == revision
    with pytest.raises(InputError, match=f"revision {revision[:12]} of the manifest is damaged"):
        read_revision(text + " ", revision)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30))
def test_any_text_survives_the_way_through_a_file(text: str) -> None:
    data = mapping()
    data["spec"]["runtime"] = {"command": {"args": ["run"], "env": {"X": text}}}
    job = from_mapping(data)
    again = parse_job(resolved_yaml(job))
    assert again.spec.runtime.command is not None
    assert again.spec.runtime.command.env == {"X": text}


@pytest.mark.parametrize(
    "text", ["yes", "on", "1:30", "0123", "2024-01-01", "1_000", "null", "3e-4", "y", "a: b", "#"]
)
def test_text_that_looks_like_something_else_survives_too(text: str) -> None:
    data = mapping()
    data["spec"]["template"] = {"spec": {"affinity": {text: [text]}}}
    assert parse_job(resolved_yaml(from_mapping(data))).spec.template.spec.affinity == {text: [text]}


def test_with_faults_adds_and_checks() -> None:
    job = from_mapping(mapping())
    fault = Fault(kind="killRank", rank=0, step=5)
    assert with_faults(job, [fault]).spec.faults == [fault]
    with pytest.raises(ManifestError, match=r"spec\.faults\[0\]\.rank: 3 does not exist"):
        with_faults(job, [Fault(kind="killRank", rank=3, step=5)])


def test_validation_needs_no_heavy_import() -> None:
    code = (
        "import sys; from pathlib import Path; from megascale.job import load_job;"
        "load_job(Path(sys.argv[1]));"
        "print([name for name in ('torch', 'numpy', 'grpc', 'megatron') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(FULL)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("rule", OVERRIDABLE_RULES)
def test_an_override_may_name_any_rule_that_an_incident_can_have(rule: str) -> None:
    job = from_mapping(
        {
            "apiVersion": "megascale.io/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "x"},
            "spec": {
                "steps": 1,
                "runtime": {"command": {"args": ["true"]}},
                "logRules": [
                    {"id": "pumps", "match": {"pattern": "pump"}, "action": "alert"},
                    {"match": {"pattern": "fan"}, "action": "alert"},
                ],
                "recovery": {"overrides": [{"match": {"rule": rule}, "action": "fail_job"}]},
            },
        }
    )
    assert job.spec.recovery.overrides[0].match.rule == rule


@pytest.mark.parametrize(
    "uri",
    [
        "ck",
        "./a/b",
        "/shared/a b",
        "~/ck",
        "a",
        "c:x",
        "a/s3://b",
        "file:///a",
        "FILE://localhost/a",
        "file:/a",
    ],
)
def test_what_is_taken_as_a_place_for_checkpoints_can_be_opened(uri: str) -> None:
    spec = {"steps": 1, "runtime": {"command": {"args": ["true"]}}, "checkpoint": {"uri": uri}}
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    assert from_mapping(head | {"spec": spec}).spec.checkpoint.uri == uri
    open_storage(uri)
