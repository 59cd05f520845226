"""Snapshots in memory: a rank that is killed costs no step, and what is not to be trusted is not used."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from local_runs import Jobs, Run, wait_until

from megascale.agent.processes import process_state
from megascale.checkpoint.snapshot_folders import make_folders, snapshot_file
from megascale.observe.rankfile import RankFile
from megascale.observe.rundir import RunDir

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def steps_done(run: Run) -> list[int]:
    return [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def snapshot_of(folder: Path, node: str) -> Path:
    return snapshot_file(make_folders(folder, node)[0], 0)


def test_killed_ranks_repeat_no_step(jobs: Jobs, undisturbed: Run) -> None:
    """The second kill falls on the attempt that had resumed from memory itself."""
    faults = ("--inject", "kill-rank:rank=1,step=8", "--inject", "kill-rank:rank=0,step=13")
    run = jobs.run(jobs.manifest("memory"), *faults)
    assert run.code == 0, run.stderr
    assert run.resumes() == [(None, "durable"), ((7, 1), "memory"), ((12, 2), "memory")]
    assert steps_done(run) == list(range(1, 31))
    assert run.losses() == undisturbed.losses()
    assert run.summary["goodputSeconds"].get("lostWork", 0.0) < 0.05
    assert not snapshot_of(run.folder, "node-0").exists()


def test_damaged_snapshot_falls_back_to_storage(jobs: Jobs, undisturbed: Run) -> None:
    """Rank 1 is frozen before step 8; a bit of its newest snapshot flips, then it is killed."""
    manifest = jobs.manifest("memory-damaged")
    process = jobs.start(manifest, "--inject", "stop-rank:rank=1,step=8")
    folder = jobs.folder / "runs" / "memory-damaged"
    wait_until((folder / "faults" / "0").exists)
    pid = RankFile.open(RunDir(folder).rank_file("node-1", 0)).read().pid
    wait_until(lambda: process_state(pid) == "T")
    flip_bits(snapshot_of(folder, "node-1"))
    os.kill(pid, signal.SIGKILL)
    run = jobs.finish(process, manifest)
    assert run.code == 0, run.stderr
    assert run.resumes() == [(None, "durable"), ((7, 1), "memory"), ((5, 1), "durable")]
    assert [i["cause"] for i in run.summary["incidents"]] == ["crash", "checkpoint_corrupt"]
    assert "snapshot in memory of step 7" in run.summary["incidents"][1]["reason"]
    assert run.losses() == undisturbed.losses()


def flip_bits(path: Path) -> None:
    """One bit in each of the two buffers, which follow three pages of headers."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for at in (12288 + 100, 12288 + (size - 12288) // 2 + 100):
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))


def test_disabled_tier_restores_from_storage(jobs: Jobs, undisturbed: Run) -> None:
    manifest = jobs.manifest("memory-off")
    text = manifest.read_text().replace("everySteps: 5", "everySteps: 5, memory: {enabled: false}")
    manifest.write_text(text)
    run = jobs.run(manifest, "--inject", "kill-rank:rank=1,step=8")
    assert run.code == 0, run.stderr
    assert run.resumes() == [(None, "durable"), ((5, 1), "durable")]
    assert run.events("SnapshotReady") == []
    assert run.losses() == undisturbed.losses()
