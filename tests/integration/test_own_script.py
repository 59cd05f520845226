"""Users' own scripts: an unchanged torch DDP example, and one with the lines of megascale.monitor."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_runs import Jobs, text_of, wait_until

ROOT = Path(__file__).parents[2]
MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  nodes: 2
  spareNodes: 0
  steps: {steps}
  runtime:
    command: {{args: [python, {script}], env: {{GREETING: "hello, ranks"}}}}
  checkpoint: {{keep: 2}}
  health: {{heartbeatSeconds: 1, silenceSeconds: 6, flapToleranceSeconds: 1}}
"""
WATCHED = """\
import os, time
import torch
from torch import distributed
from megascale import monitor
from megascale.checkpoint import script

distributed.init_process_group("gloo")
weights = torch.zeros(5, 3)
scale = torch.tensor(1.0)
state = script.load() or {"weights": weights, "scale": scale, "step": 0, "best": float("inf"), 7: (1, [None])}
assert state[7] == (1, [None]) and state["scale"].shape == () and state["best"] == float("inf"), state
print("starts at", state["step"], os.environ["GREETING"], flush=True)
for step in range(state["step"] + 1, 81):
    total = torch.ones(1)
    distributed.all_reduce(total)
    state["weights"] += total * step
    state["step"] = step
    time.sleep(0.05)
    monitor.metric("accuracy", step / 80)
    monitor.step(step, loss=float(state["weights"].mean()), tokens=10 * step)
    if step % 10 == 0:
        with monitor.phase("checkpoint"):
            script.save(state, step)
    if step == 45 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        time.sleep(600)
assert float(state["weights"][0, 0]) == 2 * 80 * 81 / 2, state
distributed.destroy_process_group()
"""

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path)
    yield jobs
    jobs.close()


def write_manifest(jobs: Jobs, name: str, script: str, steps: int) -> Path:
    path = jobs.folder / f"{name}.yaml"
    path.write_text(MANIFEST.format(name=name, script=script, steps=steps))
    return path


def status(jobs: Jobs, name: str) -> dict[str, Any]:
    result = jobs.command("status", name, "--json")
    return dict(json.loads(result.stdout)) if result.returncode == 0 else {}


def ranks(document: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {rank["rank"]: rank for node in document.get("nodes", []) for rank in node["ranks"]}


def test_an_unchanged_script_survives_the_death_of_a_rank(folder: Jobs) -> None:
    shutil.copytree(ROOT / "examples" / "ddp", folder.folder / "ddp")
    manifest = write_manifest(
        folder, "plain", 'ddp/train.py, "--steps", "100", "--step-seconds", "0.05"', 100
    )
    process = folder.start(manifest)
    wait_until((folder.folder / "ddp-checkpoint.pt").exists)
    os.kill(ranks(status(folder, "plain"))[1]["pid"], signal.SIGKILL)
    run = folder.finish(process, manifest)
    assert run.code == 0, run.stderr
    assert run.summary["state"] == "completed"
    (incident,) = run.summary["incidents"]
    assert incident["reason"] == "rank 1 on node-1 was killed by SIGKILL"
    assert (incident["action"], incident["outcome"]) == ("restart_in_place", "recovered")
    assert incident["detectionSeconds"] < 1.0
    log = (run.folder / "logs" / "attempt-2" / "rank-1.log").read_text()
    assert "rank 1 of 2 goes on from step" in log
    assert "step 100 loss" in (run.folder / "logs" / "attempt-2" / "rank-0.log").read_text()
    assert "complete" in folder.run(manifest).stderr


def test_a_script_with_two_more_lines_has_progress_hang_detection_and_checkpoints(folder: Jobs) -> None:
    (folder.folder / "watched.py").write_text(WATCHED)
    manifest = write_manifest(folder, "watched", "watched.py", 80)
    process = folder.start(manifest)
    metrics = folder.folder / "runs" / "watched" / "metrics.jsonl"
    wait_until(lambda: text_of(metrics).count("\n") >= 5)
    document = status(folder, "watched")
    assert document["step"] >= 5
    assert document["loss"] is not None
    assert document["tokensPerSecond"] > 0
    assert {rank["phase"] for rank in ranks(document).values()} <= {"forward", "checkpoint"}
    run = folder.finish(process, manifest)
    assert run.code == 0, run.stderr
    (incident,) = run.summary["incidents"]
    assert (incident["cause"], incident["outcome"]) == ("hang", "recovered"), run.stderr
    assert (incident["node"], incident["rank"]) == ("node-1", 1)
    assert "rank 1 is in <module> (watched.py:" in incident["reason"]
    assert "while 1 of 2 ranks wait in all_reduce" in incident["reason"]
    assert "is found to be: rank 1 is in <module>" in run.stderr
    shown = folder.command("events", "show", "watched", "--incident", incident["id"]).stdout
    assert "Stacks when the ranks were asked" in shown
    assert "    rank 1, after step 45" in shown
    assert "      all_reduce (torch/distributed/" in shown
    assert run.events("Launch")[1]["resume"] == {"step": 40, "attempt": 1}
    assert "starts at 40 hello, ranks" in (run.folder / "logs" / "attempt-2" / "rank-0.log").read_text()
    assert (run.summary["step"], run.summary["checkpointStep"]) == (80, 80)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert (lines[-1]["step"], lines[-1]["accuracy"], lines[-1]["tokens"]) == (80, 1.0, 800)
    assert len(list((run.folder / "checkpoints" / "commits").iterdir())) == 2


def test_a_program_that_does_not_exist_is_named_before_anything_starts(folder: Jobs) -> None:
    path = write_manifest(folder, "typo", "train.py", 5)
    path.write_text(path.read_text().replace("[python,", "[pyhton,"))
    run = folder.run(path)
    assert run.code == 2
    assert "spec.runtime.command.args: pyhton: no such program" in run.stderr
    assert not (run.folder / "record.json").exists()


ENDLESS = """\
import sys, time
from pathlib import Path
from megascale import monitor

step = 0
while not Path(sys.argv[1]).exists():
    step += 1
    time.sleep(0.05)
    monitor.step(step)
"""


def test_thresholds_are_changed_while_the_job_runs_and_nothing_else(folder: Jobs) -> None:
    (folder.folder / "endless.py").write_text(ENDLESS)
    manifest = write_manifest(folder, "live", "endless.py, end", 100_000)
    text = manifest.read_text()
    process = folder.start(manifest)
    wait_until(lambda: status(folder, "live").get("step", 0) > 2)

    manifest.write_text(text.replace("{keep: 2}", "{keep: 3}"))
    refused = folder.command("run", str(manifest), "--json")
    assert refused.returncode == 2
    assert "live is running with another manifest: it changes what ranks have read" in refused.stderr

    manifest.write_text(f"{text}  detection: {{hang: {{steps: 9}}}}\n")
    attached = folder.start(manifest)
    wait_until(lambda: "steps: 9" in (folder.folder / "runs" / "live" / "job.yaml").read_text())
    (folder.folder / "end").touch()
    run = folder.finish(process, manifest)
    assert "the changes of the manifest are in force" in attached.communicate(timeout=60)[1]
    assert run.code == 0, run.stderr
    (changed,) = [event for event in run.events("SpecChanged") if event["policy"].get("hang_steps") == 9]
    assert not changed.get("restart", False)
    assert len(run.events("Launch")) == 1


ENDS = """\
import os, sys, time
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
time.sleep(0.5)
print("rank", rank, "attempt", attempt, flush=True)
if rank == 1 and attempt < 2:
    print("last words of attempt", attempt, flush=True)
    sys.exit((143, 137)[attempt])
time.sleep(1.0 if attempt < 2 else 0.0)
"""


def test_codes_that_mean_signals_are_told_with_the_last_lines_of_the_log(folder: Jobs) -> None:
    (folder.folder / "ends.py").write_text(ENDS)
    run = folder.finish(folder.start(manifest := write_manifest(folder, "ends", "ends.py", 10)), manifest)
    assert run.code == 0, run.stderr
    notice, killed = run.summary["incidents"]
    assert notice["reason"] == "rank 1 on node-1 ended by SIGTERM (exit 143): its node is being taken away"
    assert (notice["cause"], notice["action"]) == ("planned", "restart_in_place")
    assert killed["reason"].startswith(
        "rank 1 on node-1 ended by SIGKILL (exit 137), most likely out of memory"
    )
    assert run.summary["reportsSteps"] is False
    shown = folder.command("events", "show", "ends").stdout
    for text in (run.stderr, shown):
        for attempt in (0, 1):
            assert f"  | last words of attempt {attempt}" in text
            assert f"log: runs/ends/logs/attempt-{attempt + 1}/rank-1.log" in text
