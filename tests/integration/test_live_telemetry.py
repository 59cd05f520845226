"""A rank of a running job becomes slow: it is suspected from its own timings, and its node is probed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from local_runs import Jobs

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(400)]


def wait_for_straggler(log: Path, timeout_s: float) -> None:
    """Until the answer to the probe of a straggler is in the event log."""
    end = time.monotonic() + timeout_s
    while not (log.exists() and '"kind":"ProbeResult"' in log.read_text()):
        assert time.monotonic() < end, "nobody was suspected"
        time.sleep(0.5)


def read(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "record.json").read_text())["core"]
    return record


def test_a_slow_rank_is_suspected_and_its_node_probed(jobs: Jobs) -> None:
    manifest = jobs.manifest("slow", steps=4000)
    process = jobs.start(manifest, "--inject", "slow-rank:rank=1,step=30")
    folder = jobs.folder / "runs" / "slow"
    wait_for_straggler(folder / "events.jsonl", 300.0)
    process.send_signal(signal.SIGINT)
    run = jobs.finish(process, manifest)
    assert run.code == 130, run.stderr
    times = run.events("SegmentTimes")
    steps = [event["step"] for event in times]
    assert steps == sorted(set(steps))
    assert all(len(event["compute_s"]) == 2 for event in times)
    found = [one for one in run.summary["incidents"] if one["cause"] == "straggler"]
    assert [one["node"] for one in found] == ["node-1"] * len(found)
    assert "above stage peers" in found[0]["reason"]
    assert [event["node"] for event in run.events("Probe")] == ["node-1"] * len(found)
    # The node is sound, only a process on it is slow: that convicts nobody.
    assert found[0]["action"] == "none"
    assert read(folder).get("excluded", {}) == {}
