"""`megascale logs -f` and `megascale stop` beside a running job."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from local_runs import Jobs

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

SCRIPT = """\
import time
from megascale import monitor

step = 0
while not monitor.stop_requested():
    step += 1
    time.sleep(0.05)
    monitor.step(step)
    print("step", step, flush=True)
raise SystemExit(76)
"""
MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {name: polite}
spec:
  nodes: 1
  spareNodes: 0
  steps: 100000
  runtime: {command: {args: [python, polite.py]}}
"""


def test_a_job_that_is_followed_and_stopped(jobs: Jobs) -> None:
    manifest = jobs.folder / "polite.yaml"
    manifest.write_text(MANIFEST)
    (jobs.folder / "polite.py").write_text(SCRIPT)
    owner = jobs.start(manifest)
    assert owner.stderr is not None
    assert any("polite running" in line for line in owner.stderr)
    main = "from megascale.cli.main import main; main()"
    following = subprocess.Popen(
        [sys.executable, "-c", main, "logs", "polite", "-f"],
        cwd=jobs.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    assert any(line == "step 1\n" for line in following.stdout)
    listed = json.loads(jobs.command("list", "--json").stdout)["runs"]
    assert ("polite", "running") in [(row["job"], row["state"]) for row in listed]
    stopped = jobs.command("stop", "polite", "--reason", "new data")
    assert stopped.returncode == 0, stopped.stderr
    assert "polite has ended: stopped" in stopped.stdout
    assert "new data by" in stopped.stdout
    following.communicate(timeout=30)
    assert following.returncode == 0
    assert jobs.finish(owner, manifest).summary["state"] == "stopped"
    again = jobs.command("stop", "polite")
    assert (again.returncode, again.stderr) == (0, "")
