"""`megascale job validate --here`, and what `megascale run` checks before it starts anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from megascale.cli.here import check_program, check_settings, script_of
from megascale.cli.job import app
from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.errors import InputError
from megascale.job import TrainingJob, from_mapping

HEAD = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "here"}}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with IndexedWriter(bin_path(Path("x")), idx_path(Path("x")), np.dtype("<u2")) as writer:
        writer.append(np.arange(300, dtype="<u2"))
        writer.end_document()
    return tmp_path


def manifest(**changes: dict[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "model": {"numLayers": 2, "hiddenSize": 32, "attentionHeads": 4, "vocabSize": 300},
        "data": {"path": "x", "sequenceLength": 8, "microBatch": 1, "globalBatch": 4},
    }
    megatron = {name: sections.get(name, {}) | changes.get(name, {}) for name in sections | changes}
    return HEAD | {"spec": {"steps": 5, "runtime": {"megatron": megatron}}}


def command(*args: str) -> TrainingJob:
    return from_mapping(HEAD | {"spec": {"steps": 5, "runtime": {"command": {"args": list(args)}}}})


def validate(content: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    Path("job.yaml").write_text(json.dumps(content))
    result = CliRunner().invoke(app, ["validate", "job.yaml", "--here", "--json"])
    (report,) = json.loads(result.stdout)["files"]
    return result.exit_code, report


def test_a_job_that_could_run_here_says_what_was_not_checked() -> None:
    code, report = validate(manifest())
    assert (code, report["issues"]) == (0, [])
    checked, missing = ("\n".join(report["here"][name]) for name in ("checked", "notChecked"))
    for word in ("data: x", "below vocabSize 300", "attention: reference", "memory: 1 ranks"):
        assert word in checked
    assert "checkpoint: runs/here has none" in missing
    assert "other machines" in missing
    text = CliRunner().invoke(app, ["validate", "job.yaml", "--here"])
    assert "job.yaml: valid: job here" in text.stdout
    assert "  not checked: other machines" in text.stdout


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"model": {"vocabSize": 257}}, "spec.runtime.megatron.data", "token 257 (byte 514) has id 257"),
        ({"data": {"path": "y"}}, "spec.runtime.megatron.data", "y.bin: no such file"),
        ({"data": {"path": "y", "prepareFrom": ["z"]}}, "spec.runtime.megatron.data", "z: no such file or"),
        ({"model": {"attention": "flash"}}, "spec.runtime.megatron.model.attention", "needs a CUDA device"),
        ({"data": {"microBatch": 2**24, "globalBatch": 2**24}}, "spec.runtime.megatron", "this machine has"),
    ],
)
def test_what_would_fail_here_is_an_issue(changes: dict[str, Any], path: str, message: str) -> None:
    code, report = validate(manifest(**changes))
    assert (code, report["valid"]) == (2, False)
    (issue,) = report["issues"]
    assert issue["path"] == path
    assert message in issue["message"]


def test_a_program_and_its_script_are_looked_for(folder: Path) -> None:
    with pytest.raises(InputError, match=r"spec.runtime.command.args: train.py: no such script in"):
        check_program(command("python", "-u", "train.py", "--lr", "1").spec)
    code, report = validate(HEAD | {"spec": {"steps": 5, "runtime": {"command": {"args": ["nothing-here"]}}}})
    assert (code, report["issues"][0]["path"]) == (2, "spec.runtime.command.args")
    (folder / "train.py").touch()
    check_program(command("python", "-u", "train.py", "--lr", "1").spec)
    check_program(command("python", "-m", "no.such.module").spec)


def test_a_script_is_what_python_is_given_first() -> None:
    assert script_of(["python3", "-u", "a.py", "b.py"]) == "a.py"
    assert script_of(["/usr/bin/python", "a"]) == "a"
    assert script_of(["python"]) is script_of(["python", "-c", "x"]) is script_of(["bash", "a.sh"]) is None


def test_a_run_compares_only_settings_that_depend_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"model.attention is varlen: varlen needs a CUDA device.*use auto"):
        check_settings(from_mapping(manifest(model={"attention": "varlen"})).spec)
    monkeypatch.setattr("megascale.engine.here.inspect_engine", lambda _: pytest.fail("torch was imported"))
    check_settings(from_mapping(manifest()).spec)
