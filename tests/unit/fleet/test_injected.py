"""Injected faults: what they leave behind is read where the manifest has faults, and nowhere else."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megascale.agent import injected as of_agent
from megascale.agent.injected import amendment_of, leave_as_it_is
from megascale.driver.__main__ import fleet_of
from megascale.driver.policy import policy_of
from megascale.engine.context import RankLaunch
from megascale.engine.points import pass_by, points_of
from megascale.fleet import injected as of_fleet
from megascale.fleet.base import SlotEvent
from megascale.fleet.injected import InjectedFleet
from megascale.fleet.local import LocalFleet
from megascale.job import Fault, TrainingJob, from_mapping
from megascale.observe.fault_markers import FaultMarker, leave_marker, read_markers
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

MARKER = FaultMarker(time=100.0, kind="killRank", rank=1, node="node-1", attempt=4, step=8)
FAULT = Fault(kind="killRank", rank=1, step=8)
LAUNCH = RankLaunch(
    job="j", spec={}, term=1, attempt=4, rank=1, world_size=2, local_rank=0, local_world_size=1,
    node="node-1", node_rank=1, store_host="", store_port=0, run_dir=Path(), rank_file=Path(), resume=None,
    lineage={},
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path)
    assert leave_marker(found.faults, 0, MARKER)
    return found


def job_of(*faults: dict[str, object]) -> TrainingJob:
    spec = {"steps": 10, "nodes": 2, "runtime": {"command": {"args": ["true"]}}, "faults": list(faults)}
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    return from_mapping(head | {"spec": spec})


def local_fleet(run: RunDir, job: TrainingJob) -> LocalFleet:
    return fleet_of(run, job, lambda: policy_of(job, shared_machine=True))


def killed() -> pb.RankExit:
    return pb.RankExit(rank=1, attempt=4, signal=signal.SIGKILL, at=100.5)


def test_a_marker_comes_back_and_a_fault_fires_once(run: RunDir) -> None:
    assert not leave_marker(run.faults, 0, dataclasses.replace(MARKER, time=200.0))
    assert leave_marker(run.faults, 1, dataclasses.replace(MARKER, node="node-0"))
    (run.faults / "2").write_text('{"time": 1.0, "ki')
    (run.faults / "3").write_text("[]")
    assert read_markers(run.faults) == [MARKER, dataclasses.replace(MARKER, node="node-0")]
    assert read_markers(run.root / "none") == []


def test_without_faults_nothing_looks_for_them(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(_folder: Path) -> list[FaultMarker]:
        raise AssertionError("the manifest has no faults")

    monkeypatch.setattr(of_agent, "read_markers", read)
    report = killed()
    amend = amendment_of([], run)
    assert amend is leave_as_it_is
    amend(LAUNCH, report)
    assert report == killed()
    assert points_of([], LAUNCH) is pass_by
    pass_by("step", 8)
    assert type(local_fleet(run, job_of())) is LocalFleet


def test_ranks_do_not_even_load_what_injects_faults() -> None:
    program = "import megascale.engine.rank, sys; sys.exit('megascale.engine.faults' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_injected_exit_is_told_as_such_with_its_time(run: RunDir) -> None:
    report = killed()
    amendment_of([FAULT], run)(LAUNCH, report)
    assert (report.injected, report.at) == (True, 100.0)


@pytest.mark.parametrize(
    ("launch", "report"),
    [
        (dataclasses.replace(LAUNCH, rank=0), killed()),
        (dataclasses.replace(LAUNCH, attempt=5), killed()),
        (LAUNCH, pb.RankExit(rank=1, attempt=4, signal=signal.SIGSEGV, at=100.5)),
        (LAUNCH, pb.RankExit(rank=1, attempt=4, exit_code=1, at=100.5)),
    ],
    ids=["another-rank", "another-attempt", "another-signal", "exit-code"],
)
def test_any_other_exit_is_told_as_it_is(run: RunDir, launch: RankLaunch, report: pb.RankExit) -> None:
    before = pb.RankExit()
    before.CopyFrom(report)
    amendment_of([FAULT], run)(launch, report)
    assert report == before


@pytest.mark.parametrize(
    ("node", "at", "injected"),
    [
        ("node-1", 100.0, True),
        ("node-1", 109.9, True),
        ("node-1", 110.0, False),
        ("node-1", 99.9, False),
        ("node-0", 100.1, False),
    ],
)
def test_a_node_that_ends_right_after_a_fault_fired_on_it(
    run: RunDir, node: str, at: float, injected: bool
) -> None:
    fleet = local_fleet(run, job_of({"kind": "killNode", "node": "node-1", "step": 8}))
    assert isinstance(fleet, InjectedFleet)
    seen: list[SlotEvent] = []

    async def scenario() -> None:
        told = asyncio.Event()
        await fleet.start(lambda event: (seen.append(event), told.set()))  # type: ignore[func-returns-value]
        fleet._on_event(SlotEvent(node, "its agent ended", at))
        await asyncio.wait_for(told.wait(), 10.0)

    asyncio.run(scenario())
    assert seen == [SlotEvent(node, "its agent ended", 100.0 if injected else at, injected=injected)]


def test_a_node_whose_faults_cannot_be_read_is_lost_all_the_same(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read(_folder: Path) -> list[FaultMarker]:
        raise PermissionError("not yours")

    monkeypatch.setattr(of_fleet, "read_markers", read)
    fleet = local_fleet(run, job_of({"kind": "killNode", "node": "node-1", "step": 8}))
    lost = SlotEvent("node-1", "its agent ended", 100.0)
    seen: list[SlotEvent] = []

    async def scenario() -> None:
        told = asyncio.Event()
        await fleet.start(lambda event: (seen.append(event), told.set()))  # type: ignore[func-returns-value]
        fleet._on_event(lost)
        await asyncio.wait_for(told.wait(), 10.0)

    asyncio.run(scenario())
    assert seen == [lost]
    assert "whether a fault ended node-1 is not known: PermissionError('not yours')" in caplog.messages
