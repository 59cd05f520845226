"""Nodes as real processes: slow, wrong, hung and dead ones are convicted, and everything ends in time."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from check_nodes import CheckNode, nodes_on_loopback

from megascale.diagnose.checks import MESSAGE_BYTES
from megascale.diagnose.coordinator import Coordinator, Limits
from megascale.diagnose.fleet import FleetReport

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(300)]

_PAIR_S = 4.0


def diagnose(nodes: list[CheckNode], on_progress: Callable[[str], object] = lambda _: None) -> FleetReport:
    coordinator = Coordinator(
        [node.address for node in nodes],
        token=b"",
        limits=Limits(total_s=200.0, pair_s=_PAIR_S, at_once=1),
        progress=lambda what, _done, _total: on_progress(what),
    )
    return asyncio.run(coordinator.run())


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[CheckNode]]:
    with nodes_on_loopback(3) as found:
        yield found


def names(report: FleetReport) -> list[str]:
    return [found.node for found in report.convicted]


# One run shows that sound nodes pass; a second run with the same processes only repeats it.
@pytest.mark.parametrize("_run", [1, pytest.param(2, marks=pytest.mark.proof)])
def test_good_nodes_are_healthy_again_and_again(nodes: list[CheckNode], _run: int):
    report = diagnose(nodes)
    assert report.verdict == "healthy", report.document()


# The baseline test below convicts a node with a slow GEMM, and test_diagnose_links a slow node among others.
# This one stops and continues a node's processes for the whole check.
@pytest.mark.proof
def test_a_node_that_computes_at_a_sixth_of_the_speed_is_convicted(nodes: list[CheckNode]):
    with nodes[1].throttled(running_s=0.03, stopped_s=0.17):
        report = diagnose(nodes)
    assert names(report) == ["n1"], report.document()
    # On a machine that others keep very busy as well the check of the device may not even end.
    assert {"gemm", "device"} & {fault.name for fault in report.convicted[0].faults}


def test_a_node_that_stands_still_is_a_result_and_not_a_hang(nodes: list[CheckNode]):
    began: list[float] = []

    def stop(what: str) -> None:
        if what.startswith("pairs, round 1") and not began:
            began.append(time.monotonic())
            nodes[2].signal(signal.SIGSTOP)

    try:
        report = diagnose(nodes, stop)
    finally:
        nodes[2].signal(signal.SIGCONT)
    assert names(report) == ["n2"], report.document()
    assert report.convicted[0].faults[0].status == "failed"
    # One pair waits for its bound and the grace of coordinator and worker, after that the node is not asked.
    assert time.monotonic() - began[0] < 3 * (_PAIR_S + 8)


def test_wrong_bits_a_hung_collective_and_a_dead_partner_convict_the_right_nodes():
    def kill(what: str) -> None:
        if what.startswith("pairs, round 1"):
            found[4].signal(signal.SIGKILL)

    with nodes_on_loopback(5, {1: "wrong-bits", 3: "hang"}) as found:
        report = diagnose(found, kill)
    kinds = {node.node: node.faults[0].status for node in report.convicted}
    assert kinds == {"n1": "wrong", "n3": "failed", "n4": "failed"}, report.document()
    assert "went away" in next(node.reason for node in report.convicted if node.node == "n4")
    assert {node.verdict for node in report.reports if node.node in ("n0", "n2")} == {"healthy"}


def local(*options: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "megascale.diagnose", "--light", "--local", "--json", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_a_cpu_by_itself_is_healthy_when_its_numbers_are_right(tmp_path: Path):
    log = tmp_path / "termination-log"
    code, document, _ = local("--name", "n7", "--termination-log", str(log))
    assert (code, document["verdict"], document["node"]) == (0, "healthy", "n7")
    assert "nothing says how fast: gemm, memory, loopback, all-to-all" in document["reason"]
    statuses = {check["check"]: check["status"] for check in document["checks"]}
    assert statuses == dict.fromkeys(("bits", "gemm", "memory", "loopback", "all-to-all"), "ok")
    assert not any("floor" in check for check in document["checks"])
    assert json.loads(log.read_text()) == document
    assert log.stat().st_size <= MESSAGE_BYTES


def test_a_recorded_baseline_makes_the_same_node_healthy_and_a_slow_one_convicted(tmp_path: Path):
    baseline = tmp_path / "baseline.json"
    assert local("--record-baseline", str(baseline))[0] == 0
    figures = json.loads(baseline.read_text())
    figures["figures"] = {name: value / 4 for name, value in figures["figures"].items()}
    baseline.write_text(json.dumps(figures))
    code, document, stderr = local("--baseline", str(baseline))
    assert (code, document["verdict"]) == (0, "healthy"), (document, stderr)
    figures["figures"]["gemm"] *= 40
    baseline.write_text(json.dumps(figures))
    code, document, _ = local("--baseline", str(baseline))
    assert (code, document["verdict"], document["kind"]) == (1, "convicted", "slow")
    assert document["reason"].startswith("gemm is slow")


def test_wrong_numbers_convict_a_node_by_itself():
    code, document, _ = local("--inject", "wrong-bits")
    assert (code, document["verdict"], document["kind"]) == (1, "convicted", "wrong")


def test_a_check_that_cannot_start_says_so_and_leaves_a_message(tmp_path: Path):
    log = tmp_path / "termination-log"
    code, _, stderr = local("--baseline", str(tmp_path / "absent"), "--termination-log", str(log))
    assert code == 2
    assert "absent" in stderr
    assert json.loads(log.read_text())["verdict"] == "unknown"
