"""The proof: whatever is killed, the loss at every step is bit for bit that of the undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from local_runs import Jobs, Run, text_of, wait_until

MILESTONES = [
    "fault",
    "detected",
    "decided",
    "stopped",
    "launched",
    "groups",
    "loaded",
    "firstStep",
]

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_undisturbed_run_completes(undisturbed: Run) -> None:
    summary = undisturbed.summary
    assert summary["state"] == "completed"
    assert (summary["step"], summary["checkpointStep"], summary["restarts"]) == (30, 30, 0)
    assert summary["incidents"] == []
    assert sorted(undisturbed.losses()) == list(range(1, 31))
    assert abs(sum(summary["goodputSeconds"].values()) - summary["wallSeconds"]) < 0.01


def test_rank_driver_and_node_killed_in_one_run(jobs: Jobs, undisturbed: Run) -> None:
    faults = ("kill-rank:rank=1,step=8", "kill-driver:step=13", "kill-node:node=node-1,step=22")
    arguments = [word for fault in faults for word in ("--inject", fault)]
    run = jobs.run(jobs.manifest("killed", spares=1), *arguments)
    assert run.code == 0, run.stderr
    assert run.losses() == undisturbed.losses()
    rank, node = run.summary["incidents"]
    assert (rank["rank"], rank["node"], rank["action"]) == (1, "node-1", "restart_in_place")
    assert (node["node"], node["action"]) == ("node-1", "replace_node")
    assert rank["milestones"]["fault"]["source"] == "injected"
    assert rank["detectionSeconds"] < 1.0
    # The run may be over before the second driver has heard of a step at the usual speed.
    assert list(rank["milestones"])[: len(MILESTONES)] == MILESTONES
    assert "starting the next one" in run.stderr
    assert [event["term"] for event in run.events("DriverStarted")] == [1, 2]
    # A node that is lost takes its ranks' snapshots along: the job goes on from storage.
    assert run.resumes() == [(None, "durable"), ((7, 1), "memory"), ((20, 2), "durable")]
    assert run.events("Launch")[2]["nodes"] == ["node-0", "node-2"]


def test_recorded_decisions_replay(jobs: Jobs, undisturbed: Run) -> None:
    result = jobs.command("events", "replay", str(undisturbed.folder))
    assert result.returncode == 0, result.stdout + result.stderr


def test_stale_commit_of_a_stopped_node_is_never_restored(jobs: Jobs, undisturbed: Run) -> None:
    """The node of rank 0 freezes just before its commit, and thaws when a later attempt has committed."""
    manifest = jobs.manifest("stale", spares=1, steps=40)
    process = jobs.start(manifest, "--inject", "stop-node:node=node-0,step=15,point=commit")
    folder = jobs.folder / "runs" / "stale"
    commits = folder / "checkpoints" / "commits"
    wait_until((folder / "agents" / "node-0.json").exists)
    pid = json.loads((folder / "agents" / "node-0.json").read_text())["pid"]
    wait_until(lambda: any(path.name.endswith(".2.json") for path in commits.glob("*.json")))
    os.killpg(pid, signal.SIGCONT)
    run = jobs.finish(process, manifest)
    assert run.code == 0, run.stderr
    second = run.events("Launch")[1]
    assert second["resume"] == {"step": 10, "attempt": 1}
    losses = run.losses()
    assert {step: losses[step] for step in range(1, 31)} == undisturbed.losses()
    assert not (commits / "15.1.json").exists() or 15 not in _restored_steps(run, attempt=1)


def test_a_driver_that_is_frozen_condemns_nobody(jobs: Jobs) -> None:
    """It is stopped for four times the silence bound; nodes, streams and ranks go on without it."""
    manifest = jobs.manifest("frozen", steps=10**6, silence=3)
    process = jobs.start(manifest)
    folder = jobs.folder / "runs" / "frozen"
    wait_until(lambda: text_of(folder / "metrics.jsonl").count("\n") >= 5)
    driver = json.loads((folder / "driver.json").read_text())["pid"]
    os.kill(driver, signal.SIGSTOP)
    time.sleep(12.0)
    os.kill(driver, signal.SIGCONT)
    wait_until(lambda: "DriverPaused" in text_of(folder / "events.jsonl"))
    step = len(text_of(folder / "metrics.jsonl").splitlines())
    time.sleep(4.0)  # longer than the bound, in which whoever is condemned would be lost
    wait_until(lambda: len(text_of(folder / "metrics.jsonl").splitlines()) > step)
    process.send_signal(signal.SIGINT)
    run = jobs.finish(process, manifest)
    assert run.code == 130, run.stderr
    assert run.summary["incidents"] == []
    assert run.summary["restarts"] == 0
    assert [pause["gap_s"] > 10.0 for pause in run.events("DriverPaused")] == [True]
    assert len(run.events("Launch")) == 1
    assert jobs.command("events", "replay", str(folder)).returncode == 0


def _restored_steps(run: Run, attempt: int) -> set[int]:
    resumes = (launch.get("resume") for launch in run.events("Launch"))
    return {resume["step"] for resume in resumes if resume and resume["attempt"] == attempt}


def test_interrupt_saves_and_the_next_run_resumes(jobs: Jobs, undisturbed: Run) -> None:
    manifest = jobs.manifest("interrupted")
    process = jobs.start(manifest)
    metrics = jobs.folder / "runs" / "interrupted" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 7)
    process.send_signal(signal.SIGINT)
    first = jobs.finish(process, manifest)
    assert first.code == 130, first.stderr
    assert first.summary["state"] == "stopped"
    assert first.summary["checkpointStep"] == first.summary["step"] >= 7
    _assert_nothing_left(first.folder)
    second = jobs.run(manifest)
    assert second.code == 0, second.stderr
    assert second.losses() == undisturbed.losses()
    assert [event["term"] for event in second.events("DriverStarted")] == [1, 2]
    third = jobs.run(manifest)
    assert third.code == 0
    assert "complete at step 30" in third.stderr


def _assert_nothing_left(folder: Path) -> None:
    assert list((folder / "agents").glob("*.json")) == []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            command = (proc / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        assert str(folder).encode() not in command


def test_damaged_checkpoint_falls_back_to_the_one_before(jobs: Jobs, undisturbed: Run) -> None:
    manifest = jobs.manifest("damaged", steps=20)
    assert jobs.run(manifest).code == 0
    folder = jobs.folder / "runs" / "damaged"
    shard = max((folder / "checkpoints" / "step-20" / "attempt-1").glob("rank-*.bin"))
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 1
    shard.write_bytes(raw)
    jobs.manifest("damaged", steps=30)
    run = jobs.run(manifest)
    assert run.code == 0, run.stderr
    (incident,) = run.summary["incidents"]
    assert (incident["cause"], incident["action"]) == ("checkpoint_corrupt", "roll_back")
    assert run.events("Launch")[-1]["resume"] == {"step": 15, "attempt": 1}
    assert run.losses() == undisturbed.losses()


def test_status_and_evict_of_a_running_job(jobs: Jobs, undisturbed: Run) -> None:
    manifest = jobs.manifest("evicted", spares=1, steps=400)
    process = jobs.start(manifest)
    folder = jobs.folder / "runs" / "evicted"

    def document() -> dict[str, object]:
        result = jobs.command("status", "evicted", "--json")
        return dict(json.loads(result.stdout)) if result.returncode == 0 else {}

    wait_until(lambda: '"kind":"NodeJoined","node":"node-2"' in text_of(folder / "events.jsonl"))
    assert '"node-2"' in json.dumps(document()["nodes"])
    assert jobs.command("evict", "nobody", "--reason", "test", "--job", "evicted").returncode == 2
    assert jobs.command("evict", "node-0", "--reason", "fan noise", "--job", "evicted").returncode == 0
    wait_until(lambda: 2 in _attempts(folder))
    shown = document()
    assert "node-0" in json.dumps(shown["excluded"])
    assert (shown["attempt"], shown["state"]) == (2, "running")
    process.send_signal(signal.SIGINT)
    run = jobs.finish(process, manifest)
    assert run.code == 130, run.stderr
    launch = run.events("Launch")[1]
    assert "node-0" not in launch["nodes"]
    assert launch["resume"]["step"] == max(s for s in _attempt_steps(folder, 1))
    assert "fan noise" in run.summary["incidents"][0]["reason"]


def _attempt_steps(folder: Path, attempt: int) -> list[int]:
    lines = [json.loads(raw) for raw in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["attempt"] == attempt]


def _attempts(folder: Path) -> set[int]:
    """Attempts that have completed a step; the last line may still be being written."""
    return {json.loads(raw)["attempt"] for raw in text_of(folder / "metrics.jsonl").split("\n")[:-1]}
