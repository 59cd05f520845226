"""`megascale run` beside itself: attaching, detaching, drivers that cannot run, a folder that goes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import psutil
import pytest
from local_runs import Jobs

from megascale.cli.run_folder import claim
from megascale.observe.rundir import RunDir

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

ENDLESS = """\
import time
from pathlib import Path
from megascale import monitor

step = 0
while not Path("end").exists():
    step += 1
    time.sleep(0.05)
    monitor.step(step)
"""
MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  nodes: 1
  spareNodes: 0
  steps: 100000
  runtime: {{command: {{args: [python, endless.py]}}}}
"""


class Endless:
    """A job that steps until the file `end` is there, and its files."""

    def __init__(self, jobs: Jobs, name: str) -> None:
        self.jobs = jobs
        self.manifest = jobs.folder / f"{name}.yaml"
        self.manifest.write_text(MANIFEST.format(name=name))
        (jobs.folder / "endless.py").write_text(ENDLESS)
        (jobs.folder / "end").unlink(missing_ok=True)
        self.run = RunDir(jobs.folder / "runs" / name)

    def start(self) -> subprocess.Popen[str]:
        """Start `megascale run` and wait until the job runs."""
        process = self.jobs.start(self.manifest)
        lines_until(process, f"{self.run.root.name} running")
        return process

    def driver(self) -> int:
        return int(json.loads(self.run.driver_file.read_text())["pid"])

    def end(self) -> None:
        (self.jobs.folder / "end").touch()


def lines_until(process: subprocess.Popen[str], said: str) -> None:
    """Read stderr up to a line that has `said`."""
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if said in line:
            return
    pytest.fail(f"it ended without saying {said!r}, but: {told}")


def test_a_watcher_survives_the_driver_and_detaches(jobs: Jobs) -> None:
    job = Endless(jobs, "watched")
    owner = job.start()
    watcher, leaver = job.jobs.start(job.manifest), job.jobs.start(job.manifest)
    for attached in (watcher, leaver):
        lines_until(attached, "watched running")
    leaver.send_signal(signal.SIGINT)
    out, err = leaver.communicate(timeout=60)
    assert leaver.returncode == 130
    assert "detached; the job goes on; to stop it, press Ctrl-C in the `megascale run` that owns it" in err
    assert f"kill -INT {owner.pid}" in err
    assert json.loads(out)["state"] == "running"
    os.kill(job.driver(), signal.SIGKILL)
    lines_until(watcher, "the driver was replaced; attached to the next one")
    job.end()
    out, err = watcher.communicate(timeout=100)
    assert watcher.returncode == 0, err
    assert json.loads(out)["state"] == "completed"
    assert jobs.finish(owner, job.manifest).code == 0


def test_who_comes_while_the_job_is_prepared_waits_for_its_driver(jobs: Jobs) -> None:
    job = Endless(jobs, "prepared")
    job.run.root.mkdir(parents=True)
    job.run.driver_file.write_text(json.dumps({"endpoint": "127.0.0.1:1", "pid": 2**22 - 1, "term": 1}))
    with claim(job.run) as lock:
        assert lock.owned
        waiting = jobs.start(job.manifest)
        lines_until(waiting, "this job is being prepared by another `megascale run`")
    _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 3
    assert "ended without a driver; run it again" in err


def test_the_run_of_a_driver_that_outlived_it_is_not_deleted(jobs: Jobs) -> None:
    job = Endless(jobs, "outlived")
    owner = job.start()
    owner.kill()
    owner.wait()
    refused = jobs.command("run", str(job.manifest), "--fresh")
    assert refused.returncode == 2
    driver = job.driver()
    assert f"its driver (pid {driver}) outlived" in refused.stderr
    assert job.run.record_file.exists()
    again = jobs.start(job.manifest)
    lines_until(again, "outlived running")
    again.send_signal(signal.SIGINT)
    lines_until(again, "saving a checkpoint first")
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=100)
    assert not psutil.pid_exists(driver) or psutil.Process(driver).status() == psutil.STATUS_ZOMBIE
    job.end()
    assert jobs.run(job.manifest, "--fresh").code == 0


def test_a_folder_removed_while_the_job_runs_fails_the_run(jobs: Jobs) -> None:
    job = Endless(jobs, "removed")
    owner = job.start()
    processes = [psutil.Process(owner.pid), *psutil.Process(owner.pid).children(recursive=True)]
    assert len(processes) > 2
    shutil.rmtree(job.run.root)
    _, err = owner.communicate(timeout=60)
    assert owner.returncode == 1
    assert "runs/removed was removed while the job ran" in err
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_driver_that_cannot_run_ends_the_run_with_the_reason(jobs: Jobs) -> None:
    job = Endless(jobs, "torn-later")
    owner = job.start()
    driver = job.driver()
    os.kill(driver, signal.SIGSTOP)  # it must not write the record again
    job.run.record_file.write_text('{"version": 1, "te')
    os.kill(driver, signal.SIGKILL)
    _, err = owner.communicate(timeout=100)
    assert owner.returncode == 2
    assert "the driver cannot run this job: " in err
    assert "record.json is damaged; start over with --fresh" in err
    assert "node-0 still running: they save a checkpoint and leave" in err


def test_a_driver_that_outlived_its_run_keeps_its_manifest(jobs: Jobs) -> None:
    job = Endless(jobs, "keeps")
    owner = job.start()
    owner.kill()
    owner.wait(timeout=10)
    stored = job.run.job_file.read_bytes()
    job.manifest.write_text(job.manifest.read_text().replace("steps: 100000", "steps: 5"))
    refused = jobs.start(job.manifest)
    _, error = refused.communicate(timeout=60)
    assert refused.returncode == 2, error
    assert "is running with another manifest" in error
    assert job.run.job_file.read_bytes() == stored
    job.manifest.write_text(MANIFEST.format(name="keeps"))
    adopted = job.start()
    job.end()
    _, error = adopted.communicate(timeout=60)
    assert adopted.returncode == 0, error
