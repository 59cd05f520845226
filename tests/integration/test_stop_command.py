"""`megascale logs -f` and `megascale stop` beside a running job."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

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


FILES = Path(__file__).parents[2] / "docs" / "files.md"
_STANDS_FOR = re.compile(r"<SHA-256>|<[a-z]+>|\b[SARLN]\b")


def undescribed(root: Path) -> list[str]:
    """Files of a run's folder that docs/files.md has no row for."""
    rows = [line.split("|")[1] for line in FILES.read_text().splitlines() if line.startswith("| `")]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    patterns = [".+".join(map(re.escape, _STANDS_FOR.split(name))) for name in names]
    patterns = [f"{pattern}.+" if pattern.endswith("/") else pattern for pattern in patterns]
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert len(found) > 10
    return [name for name in found if not any(re.fullmatch(pattern, name) for pattern in patterns)]


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
    assert undescribed(jobs.folder / "runs" / "polite") == []
    again = jobs.command("stop", "polite")
    assert (again.returncode, again.stderr) == (0, "")
