from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from megascale.checkpoint import CheckpointStore
from megascale.cli.checkpoint import app
from megascale.core.contract.codec import encode
from megascale.core.contract.lineage import Commit
from megascale.core.state.record import JobRecord
from megascale.errors import InputError

if TYPE_CHECKING:
    from conftest import Ranks

JOB = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {name: toy}
spec:
  steps: 100
  checkpoint: {uri: %s}
  runtime:
    command: {args: [python, train.py]}
"""


def invoke(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def listed(target: object) -> dict[str, Any]:
    return json.loads(invoke("list", target, "--json").stdout)


@pytest.fixture
def run_folder(tmp_path: Path, store: CheckpointStore, ranks: Ranks) -> Path:
    """A run whose attempt 2 resumed from step 10; attempt 1 committed step 20 too late."""
    ranks.save_flat(store, 10)
    ranks.save_flat(store, 20)
    ranks.save_flat(store, 15, attempt=2, parent=Commit(10, 1))
    folder = tmp_path / "runs/toy"
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(JOB % store.uri)
    core = encode(JobRecord(term=1, attempt=2, lineage={1: None, 2: Commit(10, 1)}))
    record = {"version": 1, "job": "toy", "term": 1, "core": core}
    (folder / "record.json").write_text(json.dumps(record))
    return folder


def test_a_run_is_listed_with_its_lineage(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = listed(run_folder)
    assert document["lineageFrom"] == "record"
    rows = [(row["step"], row["attempt"], row["onLineage"]) for row in document["checkpoints"]]
    assert rows == [(10, 1, True), (15, 2, True), (20, 1, False)]
    first = document["checkpoints"][0]
    assert (first["bytes"], first["files"], first["parent"]) == ((42 + 6 + 1) * 4, 2, None)
    assert 0 <= first["ageSeconds"] < 60
    assert document["checkpoints"][1]["parent"] == {"attempt": 1, "step": 10}
    monkeypatch.chdir(tmp_path)
    assert listed("toy")["uri"] == document["uri"]


def test_a_folder_without_a_record_takes_the_lineage_from_its_commits(
    run_folder: Path, store: CheckpointStore
) -> None:
    document = listed(store.uri)
    assert (document["lineageFrom"], document["attempt"]) == ("commits", 2)
    assert [row["onLineage"] for row in document["checkpoints"]] == [True, True, False]


def test_the_table_shows_what_counts(run_folder: Path) -> None:
    lines = invoke("list", run_folder).stdout.splitlines()
    assert lines[0].split() == ["STEP", "ATTEMPT", "LINEAGE", "SIZE", "FILES", "AGE", "RESUMED", "FROM"]
    assert lines[2].split()[:4] == ["15", "2", "yes", "196"]
    assert lines[3].split()[:3] == ["20", "1", "no"]
    assert "step 10, attempt 1" in lines[2]


def test_sound_checkpoints_verify(run_folder: Path) -> None:
    result = invoke("verify", run_folder)
    assert result.exit_code == 0
    assert result.stdout.count("sound ") == 3
    document = json.loads(invoke("verify", run_folder, "--step", 15, "--json").stdout)
    assert document["sound"] is True
    assert [c["step"] for c in document["checkpoints"]] == [15]


def test_damage_is_named_with_file_and_offset(run_folder: Path, store: CheckpointStore) -> None:
    shard = store.storage.root / "step-15/attempt-2/rank-1.bin"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    result = invoke("verify", run_folder)
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("DAMAGED")]
    assert f"{shard}: bytes 96 to 100: CRC-32" in line
    assert line.endswith("(scale/master)")
    document = invoke("verify", run_folder, "--json")
    assert document.exit_code == 1
    assert json.loads(document.stdout)["sound"] is False
    assert invoke("verify", run_folder, "--step", 10).exit_code == 0


def test_a_torn_commit_is_reported_and_fails_verify(run_folder: Path, store: CheckpointStore) -> None:
    (store.storage.root / "commits/10.1.json").write_text("{")
    assert "commits/10.1.json: damaged" in listed(run_folder)["damaged"][0]
    result = invoke("verify", run_folder)
    assert result.exit_code == 1
    assert "DAMAGED  commits/10.1.json" in result.stdout


def test_what_is_not_there_is_named(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such job"):
        invoke("list", tmp_path / "nowhere")
    with pytest.raises(InputError, match="no checkpoint of step 11; there are: 10, 15, 20"):
        invoke("verify", run_folder, "--step", 11)
    with pytest.raises(InputError, match="scheme 's3' is not supported"):
        invoke("list", "s3://bucket/x")


def test_the_store_needs_no_torch() -> None:
    """The driver and `megascale --help` import it."""
    code = "import sys, megascale.checkpoint, megascale.cli.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
