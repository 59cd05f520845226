from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megascale.engine.context import RankLaunch
from megascale.engine.faults import FaultInjector
from megascale.job import Fault


class Signals:
    """Records signals instead of sending them."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, int]] = []

    def to_process(self, pid: int, number: int) -> None:
        self.sent.append(("process", pid, number))

    def to_group(self, group: int, number: int) -> None:
        self.sent.append(("group", group, number))


def injector(
    run_dir: Path, signals: Signals, fault: Fault, *, rank: int = 0, local_rank: int = 0
) -> FaultInjector:
    launch = RankLaunch(
        job="test",
        spec={},
        term=1,
        attempt=1,
        rank=rank,
        world_size=4,
        local_rank=local_rank,
        local_world_size=2,
        node=f"node-{rank // 2}",
        node_rank=rank // 2,
        store_host="",
        store_port=0,
        run_dir=run_dir,
        rank_file=run_dir / "rank",
        resume=None,
        lineage={},
    )
    return FaultInjector([fault], launch, signals.to_process, signals.to_group)


@pytest.mark.parametrize(
    ("kind", "address", "expected"),
    [
        ("killRank", {"rank": 0}, ("process", os.getpid(), signal.SIGKILL)),
        ("stopRank", {"rank": 0}, ("process", os.getpid(), signal.SIGSTOP)),
        ("killNode", {"node": "node-0"}, ("group", os.getpgrp(), signal.SIGKILL)),
        ("stopNode", {"node": "node-0"}, ("group", os.getpgrp(), signal.SIGSTOP)),
        ("killDriver", {}, ("process", 4711, signal.SIGKILL)),
    ],
)
def test_each_kind_signals_its_target(
    kind: str, address: dict[str, object], expected: tuple[str, int, int], tmp_path: Path
) -> None:
    (tmp_path / "driver.json").write_text(json.dumps({"pid": 4711}))
    signals = Signals()
    fault = Fault.model_validate({"kind": kind, "step": 3, **address})
    injector(tmp_path, signals, fault).reach("step", 3)
    assert signals.sent == [expected]


def test_forward_passes_of_a_slow_rank_take_three_times_as_long(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from torch import nn, zeros
from megascale.engine.faults import _Drag

class Inner(nn.Module):
    def forward(self, x):
        time.sleep(0.05)
        return x

model = nn.Sequential(Inner(), Inner())
_Drag()
begin = time.monotonic()
model(zeros(1))
print(time.monotonic() - begin)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(ran.stdout) >= 0.3


def test_it_waits_for_its_step_and_point(tmp_path: Path) -> None:
    signals = Signals()
    fault = Fault(kind="killRank", rank=0, step=4, point="commit")
    faults = injector(tmp_path, signals, fault)
    for point, step in (("step", 4), ("save", 4), ("commit", 3)):
        faults.reach(point, step)
    assert signals.sent == []
    faults.reach("commit", 4)
    assert len(signals.sent) == 1


def test_it_fires_once_per_job_and_says_when(tmp_path: Path) -> None:
    signals = Signals()
    fault = Fault(kind="killRank", rank=0, step=3)
    for _attempt in range(2):
        injector(tmp_path, signals, fault).reach("step", 3)
    assert len(signals.sent) == 1
    marker = json.loads((tmp_path / "faults" / "0").read_text())
    assert marker["time"] == pytest.approx(time.time(), abs=60)
    assert {key: marker[key] for key in ("kind", "rank", "node", "step")} == {
        "kind": "killRank",
        "rank": 0,
        "node": "node-0",
        "step": 3,
    }


@pytest.mark.parametrize(
    ("fault", "rank", "local_rank"),
    [
        (Fault(kind="killRank", rank=2, step=1), 2, 0),
        (Fault(kind="killNode", node="node-1", step=1), 2, 0),
        (Fault(kind="killDriver", step=1), 0, 0),
    ],
)
def test_only_the_rank_it_is_addressed_to_acts(
    fault: Fault, rank: int, local_rank: int, tmp_path: Path
) -> None:
    (tmp_path / "driver.json").write_text(json.dumps({"pid": 4711}))
    acted = []
    for number in range(4):
        signals = Signals()
        injector(tmp_path, signals, fault, rank=number, local_rank=number % 2).reach("step", 1)
        acted += [(number, number % 2)] * len(signals.sent)
    assert acted == [(rank, local_rank)]
