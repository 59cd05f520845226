"""`megascale job` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megascale.cli.job import app
from megascale.errors import InputError

EXAMPLE = str(Path(__file__).parents[3] / "examples" / "quickstart.yaml")
WRONG = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {name: x}
spec:
  steps: two
  runtime: {command: {args: [run]}}
  node: 3
"""


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    path = tmp_path / "wrong.yaml"
    path.write_text(WRONG)
    return str(path)


def test_validate_says_what_the_job_would_do() -> None:
    result = CliRunner().invoke(app, ["validate", EXAMPLE])
    assert result.exit_code == 0
    assert (
        f"{EXAMPLE}: valid: job quickstart: 200 steps on nodes 2 x ranksPerNode 1 = 2 ranks" in result.stdout
    )
    assert "data 2" in result.stdout


def test_validate_says_how_the_batch_grows() -> None:
    text = Path(EXAMPLE).read_text()
    ramp = "globalBatch: 16\n        batchRamp: {start: 8, increment: 8, everySteps: 5}"
    result = CliRunner().invoke(app, ["validate", "-"], input=text.replace("globalBatch: 16", ramp))
    assert "; 8 to 16 samples of " in result.stdout, result.output


def test_validate_prints_every_problem_of_every_file(wrong: str) -> None:
    result = CliRunner().invoke(app, ["validate", wrong, EXAMPLE, "nowhere.yaml"])
    assert result.exit_code == 2
    assert f'{wrong}:5: spec.steps: got "two", expected a whole number' in result.stderr
    assert f'{wrong}:7: spec.node: unknown field "node" (did you mean nodes?)' in result.stderr
    assert f"{wrong}: 2 problems, nothing was started" in result.stderr
    assert "nowhere.yaml: file: cannot be read: No such file" in result.stderr
    assert f"{EXAMPLE}: valid" in result.stdout
    assert "wrong.yaml" not in result.stdout


def test_validate_json_is_one_document(wrong: str) -> None:
    result = CliRunner().invoke(app, ["validate", wrong, EXAMPLE, "--json"])
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["valid"] is False
    assert [file["valid"] for file in document["files"]] == [False, True]
    first = document["files"][0]["issues"][0]
    assert (first["path"], first["line"], first["file"]) == ("spec.steps", 5, wrong)


def test_validate_reads_stdin() -> None:
    result = CliRunner().invoke(app, ["validate", "-"], input=WRONG)
    assert result.exit_code == 2
    assert "stdin:5: spec.steps" in result.stderr


def test_schema_is_a_json_schema_with_camel_case_names() -> None:
    document = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    assert document["$schema"].startswith("https://json-schema.org/")
    assert {"ranksPerNode", "spareNodes"} <= set(document["$defs"]["JobSpec"]["properties"])
    assert document["$defs"]["JobSpec"]["required"] == ["steps", "runtime"]


def test_explain_a_section() -> None:
    out = CliRunner().invoke(app, ["explain", "spec.runtime.megatron.optimizer"]).stdout
    assert "FIELD:    spec.runtime.megatron.optimizer <object>" in out
    assert 'name <string>, default "lamb"' in out
    assert "Allowed: one of lamb, adamw" in out


def test_explain_a_field() -> None:
    out = CliRunner().invoke(app, ["explain", "spec.steps"]).stdout
    assert "ALLOWED:  a whole number from 1 to 1000000000" in out
    assert "DEFAULT:  none, the field is required" in out


def test_explain_json() -> None:
    document = json.loads(CliRunner().invoke(app, ["explain", "spec.checkpoint", "--json"]).stdout)
    assert document["path"] == "spec.checkpoint"
    assert [field["path"] for field in document["fields"]][:2] == [
        "spec.checkpoint.uri",
        "spec.checkpoint.everySteps",
    ]
    assert document["fields"][1]["default"] == "50"


def test_explain_an_unknown_field() -> None:
    result = CliRunner().invoke(app, ["explain", "spec.runtime.megatron.optimiser"])
    assert isinstance(result.exception, InputError)
    assert "did you mean spec.runtime.megatron.optimizer?" in str(result.exception)
