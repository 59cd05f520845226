"""Wrong input to `megascale run`: a clear message, the right exit code, nothing started."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from local_runs import Jobs

from megascale.data.indexed import IndexedWriter, bin_path, idx_path


def foreign_data(prefix: Path) -> None:
    """Data of another tool, with one token id that the byte vocabulary does not have."""
    with IndexedWriter(bin_path(prefix), idx_path(prefix), np.dtype("<u2")) as writer:
        writer.append(np.asarray([1, 2, 3, 257, *range(200)], dtype="<u2"))
        writer.end_document()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("path: data/text", "path: data/missing"), "data/missing"),
        (("sequenceLength: 32", "sequenceLength: 1000000"), "sequence"),
        (("steps: 30", "steps: 30\n  parallelism: {tensor: 2}"), "spec.parallelism"),
        (("globalBatch: 8", "globalBatch: 7"), "globalBatch"),
        (("numLayers: 2", "numLayers: yes"), "yes"),
        (("name: lamb", "name: lamp"), "lamb"),
        (
            ("window: 16", "attention: flash"),
            "spec.runtime.megatron.model.attention is flash: flash needs a CUDA",
        ),
        (("path: data/text", "path: data/foreign"), "foreign.bin: token 3 (byte 6) has id 257, but"),
    ],
)
def test_a_wrong_manifest_is_refused(jobs: Jobs, change: tuple[str, str], said: str) -> None:
    foreign_data(jobs.folder / "data" / "foreign")
    manifest = jobs.manifest("refused")
    manifest.write_text(manifest.read_text().replace(*change))
    result = jobs.command("run", str(manifest), "--json")
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert not (jobs.folder / "runs" / "refused" / "agents").exists()


def test_layout_that_does_not_fit_names_both_numbers(jobs: Jobs) -> None:
    manifest = jobs.manifest("layout")
    text = manifest.read_text().replace("      data:", "      parallelism: {pipeline: 2}\n      data:")
    manifest.write_text(text.replace("numLayers: 2", "numLayers: 3"))
    result = jobs.command("run", str(manifest))
    assert result.returncode == 2
    assert "3" in result.stderr
    assert "pipeline" in result.stderr


def test_a_changed_job_is_compared_with_its_checkpoint(jobs: Jobs) -> None:
    manifest = jobs.manifest("changed", steps=5)
    assert jobs.command("run", str(manifest), "--json").returncode == 0
    longer = manifest.read_text().replace("steps: 5", "steps: 10").replace("name: constant", "name: cosine")
    manifest.write_text(longer.replace("hiddenSize: 32", "hiddenSize: 64"))
    for command in (("run", str(manifest)), ("job", "validate", "--here", str(manifest))):
        refused = jobs.command(*command)
        assert refused.returncode == 2
        assert "model.hiddenSize" in refused.stderr
        assert "is 64, the checkpoint of step 5 was trained with 32; change it back" in refused.stderr
    manifest.write_text(longer)
    warned = jobs.command("run", str(manifest), "--json")
    assert warned.returncode == 0
    assert "resuming from step 5: the learning rate of step 6 is " in warned.stderr


def test_runs_folder_that_cannot_be_written(jobs: Jobs) -> None:
    blocked = jobs.folder / "blocked"
    blocked.write_text("a file where a folder should be")
    result = jobs.command("run", str(jobs.manifest("unwritable")), "--runs", str(blocked))
    assert result.returncode == 2
    assert "blocked" in result.stderr


def test_damaged_record_is_named(jobs: Jobs) -> None:
    folder = jobs.folder / "runs" / "torn"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text('{"version": 1, "te')
    result = jobs.command("run", str(jobs.manifest("torn")))
    assert result.returncode == 2
    assert "record.json" in result.stderr
    assert "--fresh" in result.stderr


def test_status_without_a_driver_says_how_to_start_one(jobs: Jobs, tmp_path: Path) -> None:
    folder = jobs.folder / "runs" / "idle"
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(jobs.manifest("idle").read_text())
    result = jobs.command("status", "idle")
    assert result.returncode == 3
    assert "megascale run" in result.stderr


def test_complete_job_is_not_run_again(jobs: Jobs) -> None:
    folder = jobs.folder / "runs" / "done"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"state": "completed", "step": 30, "steps": 30}))
    result = jobs.command("run", str(jobs.manifest("done")), "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["step"] == 30
    assert "--fresh" in result.stderr
