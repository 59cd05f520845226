"""`megascale doctor` on nodes made of files: what it finds, and that it never guesses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megascale.cli.main import app
from megascale.diagnose import doctor
from megascale.diagnose.doctor import Machine, examine, verdict
from megascale.diagnose.nic import Finding, check_nics


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node with one RoCE card in good order."""
    port = "sys/class/infiniband/mlx5_0/ports/1"
    for path, text in {
        f"{port}/state": "4: ACTIVE",
        f"{port}/rate": "400 Gb/sec (4X NDR)",
        f"{port}/link_layer": "Ethernet",
        f"{port}/counters/symbol_error": "0",
        f"{port}/hw_counters/packet_seq_err": "0",
        "sys/class/infiniband/mlx5_0/device/net/eth0/x": "",
        "sys/class/net/eth0/mtu": "9000",
        "sys/class/net/eth0/ecn/roce_np/enable/3": "1",
        "sys/class/net/eth0/ecn/roce_rp/enable/3": "1",
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 4194304 kB\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA 570.1\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    return tmp_path


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_a_card_in_good_order(node: Path) -> None:
    found = by_name(check_nics(node))
    assert found["NIC link mlx5_0/1"] == Finding("NIC link mlx5_0/1", "ok", "active, 400 Gb/sec (4X NDR)")
    assert found["NIC errors mlx5_0/1"].value == "none in 2 counters"
    assert (found["MTU eth0"].status, found["ECN eth0"].value) == ("ok", "priorities 3")
    assert all(finding.status != "change" for finding in found.values())


@pytest.mark.parametrize(
    ("path", "text", "check", "value"),
    [
        ("sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN", "NIC link mlx5_0/1", "1: DOWN"),
        (
            "sys/class/infiniband/mlx5_0/ports/1/counters/symbol_error",
            "12",
            "NIC errors mlx5_0/1",
            "symbol_error 12",
        ),
        ("sys/class/net/eth0/mtu", "1500", "MTU eth0", "1500"),
        ("sys/class/net/eth0/ecn/roce_rp/enable/3", "0", "ECN eth0", "off"),
    ],
)
def test_what_must_change_is_said_with_what_to_do(
    node: Path, path: str, text: str, check: str, value: str
) -> None:
    (node / path).write_text(text)
    finding = by_name(check_nics(node))[check]
    assert (finding.status, finding.value) == ("change", value)
    assert finding.advice


@pytest.mark.parametrize(
    ("path", "check"),
    [
        ("sys/class/infiniband/mlx5_0/ports/1/state", "NIC link mlx5_0/1"),
        ("sys/class/net/eth0/mtu", "MTU eth0"),
        ("sys/class/net/eth0/ecn/roce_np/enable/3", "ECN eth0"),
        ("proc/meminfo", "free memory"),
        ("proc/driver/nvidia/version", "NVIDIA driver"),
    ],
)
def test_what_a_node_cannot_tell_is_unknown(node: Path, path: str, check: str) -> None:
    (node / path).unlink()
    assert by_name(examine(Machine(node, node)))[check].status == "unknown"


def test_a_node_without_cards_is_all_unknown(tmp_path: Path) -> None:
    assert {finding.status for finding in check_nics(tmp_path)} == {"unknown"}


def test_limits_are_compared(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (1024, 4096))
    found = by_name(examine(Machine(node, node)))
    assert found["open files"].advice == (
        "each rank holds connections and data files: ulimit -n 65536 (hard limit here: 4096)"
    )
    assert (found["locked memory"].status, found["locked memory"].value) == ("change", "1 KiB")


def test_little_memory_and_a_missing_folder(node: Path) -> None:
    (node / "proc/meminfo").write_text("MemAvailable: 1024 kB\n")
    found = by_name(examine(Machine(node, node / "nowhere")))
    assert (found["free memory"].status, found["free memory"].value) == ("change", "1 MiB")
    assert found["free disk"].status == "unknown"


def test_exit_code_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = Finding("a", "ok", "1"), Finding("b", "change", "2", "do it")
    assert (verdict([good]), verdict([good, bad])) == ("ok", "change")
    monkeypatch.setattr(doctor, "examine", lambda _: [good, Finding("c", "unknown", "-")])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["verdict"]) == (0, "ok")
    monkeypatch.setattr(doctor, "examine", lambda _: [good, bad])
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "do it" in result.stdout
