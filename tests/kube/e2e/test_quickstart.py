"""The manifest of `make run`, applied unchanged: real training on checked nodes, one of which is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from objects import eventually
from suite.jobs import driver
from suite.site import Site

from megascale.core.contract.names import unpack

pytestmark = [pytest.mark.multiprocess, pytest.mark.minutes, pytest.mark.timeout(900)]
QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart.yaml"
LATE = 100
"""A step after the fault that the manifest injects."""


def committed(folder: Path) -> list[int]:
    """Return the steps with a commit."""
    return sorted(int(path.name.partition(".")[0]) for path in folder.glob("commits/*.json"))


def test_the_quickstart_trains_and_survives_a_lost_node(site: Site, namespace: str) -> None:
    job = site.job(namespace, yaml.safe_load(QUICKSTART.read_text()))
    folder = site.checkpoints / namespace / f"{job.name}-{job.get()['metadata']['uid'][:8]}"
    eventually(lambda: max(committed(folder), default=0) >= LATE or None, 2 * job.patience_s)
    slots = job.pods("slot")
    assert len(slots) == 3
    # Nodes were checked before they got ranks, here with gloo and on the CPU.
    checks = [one["status"]["initContainerStatuses"][0]["state"]["terminated"] for one in slots]
    assert [check["exitCode"] for check in checks] == [0, 0, 0]
    assert '"verdict":"healthy"' in checks[0]["message"]
    bad = assigned(site, namespace)[0]
    site.control.act(bad, "stop")
    try:
        done = job.until_state("Completed", 2 * job.patience_s)
    finally:
        site.control.act(bad, "start")
    last = driver(done)
    assert last["step"] == last["checkpointStep"] == 200
    assert float(last["loss"]) < 4.0
    causes = [(one.get("node", ""), one["reason"]) for one in last["incidents"]]
    assert any("rank 1" in reason and "SIGKILL" in reason for _, reason in causes), causes
    assert any(node == bad for node, _ in causes), causes
    # Training did not restart from step 0: no data of the lost pod was needed.
    assert min(committed(folder)) >= LATE
    assert job.condition("Complete") == "True"


def assigned(site: Site, namespace: str) -> list[str]:
    """Return the nodes with ranks from the driver's job record."""
    path = f"/api/v1/namespaces/{namespace}/configmaps/quickstart-record"
    record = json.loads(site.api.get(path)["data"]["record.json"])
    return unpack(record["core"]["assignment"])
