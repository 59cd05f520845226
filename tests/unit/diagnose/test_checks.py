"""Verdict on one node: statuses, reasons, and the bound of the message for Kubernetes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.diagnose.checks import MESSAGE_BYTES, Check, Floor, NodeReport, judge
from megascale.diagnose.expected import read_baseline, table_floors, write_baseline
from megascale.errors import InputError


def answer(rank: int, **values: float) -> dict[str, Any]:
    measures = [{"check": name, "value": v, "unit": "GB/s", "wrong": ""} for name, v in values.items()]
    return {"rank": rank, "measures": measures}


def test_the_worst_rank_is_judged():
    checks = judge([answer(0, memory=10.0), answer(1, memory=4.0)], {"memory": Floor(5.0, "table")})
    (check,) = checks
    assert (check.status, check.value, check.detail) == ("slow", 4.0, "rank 1")
    report = NodeReport("n1", "H100", tuple(checks))
    assert report.verdict == "convicted"
    assert report.reason == "memory is slow: 4 GB/s, expected at least 5 of this hardware (rank 1)"


def test_a_figure_without_expectation_is_unknown_and_never_healthy():
    (check,) = judge([answer(0, memory=10.0)], {})
    assert check.status == "unknown"
    report = NodeReport("n1", "AMD EPYC x2", (check, Check("bits", "ok")))
    assert report.verdict == "unknown"
    assert "memory" in report.reason


def test_nothing_checked_is_unknown():
    assert NodeReport("n1", "").verdict == "unknown"


def test_only_all_ok_is_healthy():
    floors = {"memory": Floor(5.0, "baseline")}
    assert NodeReport("n1", "", tuple(judge([answer(0, memory=6.0)], floors))).verdict == "healthy"


def test_wrong_numbers_convict_whatever_the_speed():
    wrong = {"check": "bits", "value": 0.0, "unit": "", "wrong": "CRC 1, expected 2"}
    checks = judge([answer(0, memory=9.0), {"rank": 1, "measures": [wrong]}], {"memory": Floor(5.0, "table")})
    report = NodeReport("n1", "", tuple(checks))
    assert report.document()["kind"] == "wrong"
    assert "rank 1: CRC 1, expected 2" in report.reason


def test_a_rank_that_died_or_hung_convicts():
    (check,) = judge([{"rank": 3, "op": "all-to-all", "error": "did not finish in time"}], {})
    assert (check.name, check.status) == ("all-to-all", "failed")
    assert NodeReport("n1", "", (check,)).reason == "all-to-all failed: rank 3: did not finish in time"


checks = st.builds(
    Check,
    name=st.text(max_size=40),
    status=st.sampled_from(["ok", "slow", "wrong", "failed", "unknown"]),
    value=st.none() | st.floats(0, 1e15),
    unit=st.text(max_size=12),
    floor=st.none() | st.builds(Floor, st.floats(0, 1e15), st.sampled_from(["table", "baseline", "peers"])),
    detail=st.text(max_size=5000),
)


@given(st.text(max_size=300), st.text(max_size=300), st.lists(checks, max_size=40))
def test_the_message_fits_kubernetes_and_keeps_the_verdict(node, hardware, found):
    report = NodeReport(node, hardware, tuple(found))
    message = report.message()
    assert len(message.encode()) <= MESSAGE_BYTES
    assert "\n" not in message
    document = json.loads(message)
    assert document["verdict"] == report.verdict
    assert document["kind"] == (report.faults[0].status if report.faults else "")


def test_gpus_of_eight_fit_whole():
    measured = [
        answer(rank, **dict.fromkeys(table_floors("NVIDIA H100 80GB HBM3"), 1e9)) for rank in range(8)
    ]
    report = NodeReport("n1", "NVIDIA H100 80GB HBM3", tuple(judge(measured, table_floors("NVIDIA H100"))))
    assert report.verdict == "healthy"
    assert json.loads(report.message()) == report.document()


@pytest.mark.parametrize(
    ("name", "gemm", "fabric"),
    [
        ("NVIDIA H100 80GB HBM3", 989, True),
        ("NVIDIA H100 PCIe", 756, False),
        ("NVIDIA H200", 989, True),
        ("NVIDIA A100-SXM4-80GB", 312, True),
        ("NVIDIA A100 80GB PCIe", 312, False),
        ("NVIDIA B200", 2250, True),
    ],
)
def test_the_table_knows_the_hardware(name, gemm, fabric):
    floors = table_floors(name)
    assert 0.5 * gemm < floors["gemm"].value < 0.8 * gemm
    assert ("all-to-all" in floors) == fabric


@pytest.mark.parametrize("name", ["AMD EPYC x2", "NVIDIA GeForce RTX 4090", "NVIDIA GH200 480GB", ""])
def test_other_hardware_is_not_in_the_table(name):
    assert table_floors(name) == {}


def test_a_baseline_is_read_back_for_the_same_hardware_only(tmp_path: Path):
    path = tmp_path / "b.json"
    write_baseline(path, "AMD EPYC x2", [Check("memory", "unknown", 10.0, "GB/s"), Check("bits", "ok")])
    floors = read_baseline(path).floors_on("AMD EPYC x2")
    assert set(floors) == {"memory"}
    assert judge([answer(0, memory=4.0)], floors)[0].status == "slow"
    assert judge([answer(0, memory=8.0)], floors)[0].status == "ok"
    with pytest.raises(InputError, match="this node is 'AMD EPYC x4'"):
        read_baseline(path).floors_on("AMD EPYC x4")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hardware": "x", "figures": 3}', '{"figures": {}}'])
def test_a_damaged_baseline_is_bad_input(tmp_path: Path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(InputError, match="record-baseline"):
        read_baseline(path)
