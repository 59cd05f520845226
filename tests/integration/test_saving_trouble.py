"""Saves that go wrong: training goes on, nothing readable is lost."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_runs import Jobs, Run, wait_until

from megascale.observe.rankfile import RankFile

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of this size."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED: a full disk needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, too small for one checkpoint of the test job."""
    with mounted(tmp_path, "256k") as folder:
        yield folder


@pytest.fixture
def small_disk(jobs: Jobs) -> Iterator[Path]:
    """The folder of the run "roomless", on a file system of 80 MiB."""
    with mounted(jobs.folder / "runs" / "roomless", "80m") as folder:
        yield folder
        jobs.close()


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


def test_a_full_runs_folder_stops_neither_training_nor_a_stop(
    jobs: Jobs, undisturbed: Run, small_disk: Path
) -> None:
    manifest = jobs.manifest("roomless", steps=400)
    manifest.write_text(manifest.read_text().replace("everySteps: 5", "everySteps: 5, saveSeconds: 3"))
    process = jobs.start(manifest)
    wait_until(lambda: any((small_disk / "checkpoints" / "commits").glob("10.*.json")))
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    rank = RankFile.open(small_disk / "ranks" / "node-0-0.rank")
    step = rank.read().step
    wait_until(lambda: rank.read().step > step + 20)
    process.send_signal(signal.SIGINT)
    stopped = jobs.finish(process, manifest)
    assert stopped.code == 130, stopped.stderr
    assert stopped.summary["state"] == "stopped"
    assert stopped.summary["step"] > step + 20
    assert "events are left out of the log" in stopped.stderr
    assert "lines are left out" in stopped.stderr
    for name in ("metrics.jsonl", "events.jsonl"):
        for line in (stopped.folder / name).read_text().splitlines():
            json.loads(line)
    filler.unlink()
    manifest.write_text(manifest.read_text().replace("steps: 400", "steps: 30"))
    again = jobs.run(manifest)
    assert again.code == 0, again.stderr
    assert again.resumes()[-1][0] is not None
    expected = undisturbed.losses()
    assert all(losses == expected[step] for step, losses in again.losses().items() if step in expected)
    replayed = jobs.command("events", "replay", "roomless", "--json")
    assert json.loads(replayed.stdout)["ok"], replayed.stdout


def test_kill_while_saving_falls_back_to_the_commit_before(jobs: Jobs, undisturbed: Run) -> None:
    run = jobs.run(jobs.manifest("saving"), "--inject", "kill-rank:rank=0,step=15,point=save")
    assert run.code == 0, run.stderr
    assert run.losses() == undisturbed.losses()
    assert run.events("Launch")[1]["resume"]["attempt"] == 1
    (incident,) = run.summary["incidents"]
    assert list(incident["milestones"])[-1] == "backToSpeed"
