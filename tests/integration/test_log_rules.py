"""Log rules of a manifest, live: agents match them on new lines, the driver on the lines before an exit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_runs import Jobs

MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  nodes: 1
  spareNodes: {spares}
  steps: 10
  runtime:
    command: {{args: [python, script.py]}}
  logRules:
  - {{id: pump-failed, match: {{pattern: "coolant pump \\\\d+ failed"}}, action: replace_node}}
  - {{id: pump-warm, match: {{pattern: coolant is warm}}, action: alert}}
  - {{id: quota, match: {{pattern: "out of quota for .*tokens"}}, class: user_code, action: fail_job}}
  health: {{heartbeatSeconds: 1, silenceSeconds: 6}}
"""
LOST_PUMP = """\
import os, time
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    print("coolant is warm", flush=True)
    print("2026-11-30 10:00:00,123 ERROR coolant pump 4 failed", flush=True)
    time.sleep(60)
"""
NO_QUOTA = """\
import sys
print("Mon: out of quota for more tokens", flush=True)
sys.exit(3)
"""

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path)
    yield jobs
    jobs.close()


def write(jobs: Jobs, name: str, script: str, spares: int) -> Path:
    (jobs.folder / "script.py").write_text(script)
    path = jobs.folder / f"{name}.yaml"
    path.write_text(MANIFEST.format(name=name, spares=spares))
    return path


def test_a_line_that_a_rule_matches_replaces_the_node(folder: Jobs) -> None:
    run = folder.run(write(folder, "pump", LOST_PUMP, spares=1))
    assert run.code == 0, run.stderr
    (incident,) = run.summary["incidents"]
    assert (incident["cause"], incident["action"]) == ("hardware", "replace_node")
    assert incident["reason"].startswith("pump-failed on node-0")
    assert "pump-failed is sure" in incident["decision"]
    assert {match["rule"] for match in run.events("LogMatch")} == {"pump-warm", "pump-failed"}
    assert "pump-warm: coolant is warm" in run.stderr


def test_an_exit_is_judged_by_the_rules_of_the_job(folder: Jobs) -> None:
    run = folder.run(write(folder, "quota", NO_QUOTA, spares=0))
    assert run.code == 1, run.stderr
    assert run.summary["state"] == "failed"
    (incident,) = run.summary["incidents"]
    assert incident["action"] == "fail_job"
    assert "out of quota for more tokens" in incident["reason"]
