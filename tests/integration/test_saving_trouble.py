"""Saves that go wrong: training goes on, nothing readable is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_runs import Jobs, Run

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, too small for one checkpoint of the test job."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED: a full disk needs the right to mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_job_whose_last_state_cannot_be_saved_trains_to_its_end_and_fails(
    jobs: Jobs, undisturbed: Run, tiny_disk: Path
) -> None:
    manifest = jobs.manifest("full")
    checkpoint = f"everySteps: 5, saveSeconds: 3, uri: {tiny_disk}/checkpoints"
    manifest.write_text(manifest.read_text().replace("everySteps: 5", checkpoint))
    run = jobs.run(manifest)
    assert run.code == 1, run.stderr
    assert run.losses() == undisturbed.losses()
    assert (run.summary["state"], run.summary["checkpointStep"]) == ("failed", None)
    assert run.summary["reason"].startswith(
        "failed to save: all 30 steps are done, but the state after step 30"
    )
    alerts = run.events("LogMatch")
    assert {alert["rule"] for alert in alerts} == {"checkpointSaveFailed", "lastSaveFailed"}
    assert "No space left" in alerts[0]["line"]

    subprocess.run(["mount", "-o", "remount,size=64m", str(tiny_disk)], check=True)
    again = jobs.run(manifest)
    assert again.code == 0, again.stderr
    assert (again.summary["state"], again.summary["checkpointStep"]) == ("completed", 30)


def test_kill_while_saving_falls_back_to_the_commit_before(jobs: Jobs, undisturbed: Run) -> None:
    run = jobs.run(jobs.manifest("saving"), "--inject", "kill-rank:rank=0,step=15,point=save")
    assert run.code == 0, run.stderr
    assert run.losses() == undisturbed.losses()
    assert run.events("Launch")[1]["resume"]["attempt"] == 1
    (incident,) = run.summary["incidents"]
    assert list(incident["milestones"])[-1] == "backToSpeed"
