"""`--set FIELD=VALUE`: fields that count instead of the file's."""

from __future__ import annotations

from pathlib import Path

import pytest

from megascale.errors import InputError, ManifestError
from megascale.job import load_job

EXAMPLE = Path(__file__).parents[3] / "examples" / "quickstart.yaml"


def test_a_field_that_is_set_counts() -> None:
    changes = (
        "spec.steps=500",
        "spec.faults[0].rank=0",
        "metadata.name=007",
        "spec.health.heartbeatSeconds=2",
    )
    job = load_job(EXAMPLE, changes=changes)
    assert (job.spec.steps, job.metadata.name, job.spec.health.heartbeat_seconds) == (500, "007", 2)
    assert job.spec.faults[0].model_dump(by_alias=True)["rank"] == 0
    assert load_job(EXAMPLE, changes=("spec.steps=300", "spec.steps=400", "spec.faults=[]")).spec.steps == 400


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("spec.steps", "--set spec.steps: expected FIELD=VALUE"),
        ("spec..steps=1", "expected FIELD=VALUE"),
        ("spec.stepz=1", "did you mean spec.steps?"),
        ("spec.runtime.megatron.model.heads=4", "did you mean spec.runtime.megatron.model.attentionHeads?"),
        ("spec.faults[1].rank=0", "spec.faults has 1 item, counted from 0"),
        ("spec.faults.rank=0", "spec.faults is a list: name an item, as spec.faults[0]"),
    ],
)
def test_a_field_that_cannot_be_set_is_named(change: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        load_job(EXAMPLE, changes=[change])
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("spec.steps=abc", '--set: spec.steps: got "abc", expected a whole number'),
        ("spec.nodes=yes", "(expected a whole number from 1"),
        ("spec.suspend=yes", "(write true)"),
        ("spec.steps=", "--set: spec.steps: is empty"),
        ("spec.runtime.command=python x.py", "(write {args: [python, x.py]})"),
        ("spec.faults[0].rank=9", "--set: spec.faults[0].rank: "),
    ],
)
def test_a_wrong_value_is_refused_as_in_a_file(change: str, said: str) -> None:
    with pytest.raises(ManifestError) as refused:
        load_job(EXAMPLE, changes=[change])
    assert said in str(refused.value)


def test_a_mistake_of_the_file_keeps_its_line(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(EXAMPLE.read_text().replace("nodes: 2", "nodes: yes"))
    with pytest.raises(ManifestError) as refused:
        load_job(path, changes=["spec.steps=x"])
    found = {issue.path: (issue.file, issue.line is None) for issue in refused.value.issues}
    assert found == {"spec.steps": ("--set", True), "spec.nodes": (str(path), False)}
    assert load_job(path, changes=["spec.nodes=1", "spec.faults=[]"]).spec.nodes == 1
