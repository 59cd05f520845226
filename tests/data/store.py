"""Runs `job.yaml` and keeps what it wrote under `stored/core-N`, where N is `CORE_VERSION`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from megascale.core.contract.codec import Json
from megascale.core.contract.vocabulary import Cause
from megascale.core.eventlog import Entry, Header, parse_line
from megascale.core.machine import CORE_VERSION, Core
from megascale.core.state.record import JobState
from megascale.driver.record import RECORD_VERSION

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        megascale = Path(sys.executable).with_name("megascale")
        subprocess.run([megascale, "run", HERE / "job.yaml"], cwd=folder, check=True)
        run = Path(folder) / "runs" / "stored"
        target = HERE / "stored" / f"core-{CORE_VERSION}"
        target.mkdir(parents=True, exist_ok=True)
        for name in ("events.jsonl", "record.json"):
            shutil.copy(run / name, target / name)
        record = {
            "version": RECORD_VERSION,
            "job": "stored",
            "term": 1,
            "core": recovering(run / "events.jsonl"),
        }
        (target / "record-recovering.json").write_text(json.dumps(record) + "\n")


def recovering(log: Path) -> Json:
    """What the driver last wrote into the record while it stopped the ranks after the loss of the node."""
    core, found = None, None
    for line in log.read_text().splitlines():
        item = parse_line(line)
        if isinstance(item, Header):
            core = Core(item.policy)
        elif isinstance(item, Entry) and core is not None:
            core.step(item.event, item.at)
            incident = core.record.incident
            if core.record.state is JobState.STOPPING and incident and incident.cause is Cause.NODE_LOST:
                found = core.snapshot()
    assert found is not None, "no node was lost in this run"
    return found


if __name__ == "__main__":
    main()
