"""Read from a node's network cards: state, errors, MTU, ECN, PFC, adaptive retransmission."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

_ROCE_MTU: Final = 4200  # an RDMA MTU of 4096 and its headers
_TOOL_TIMEOUT_S: Final = 10.0
_ERROR_COUNTERS: Final = (
    "counters/symbol_error",
    "counters/link_downed",
    "counters/link_error_recovery",
    "counters/port_rcv_errors",
    "hw_counters/local_ack_timeout_err",
    "hw_counters/packet_seq_err",
    "hw_counters/rx_icrc_encapsulated",
)
_RETRANSMIT: Final = "adaptive retransmission"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        status: unknown = the node does not expose it.
        advice: what to change, "" if nothing.
    """

    check: str
    status: Literal["ok", "change", "unknown"]
    value: str
    advice: str = ""


def check_nics(root: Path) -> list[Finding]:
    """Findings of all RDMA devices, or unknowns when there is none."""
    devices = sorted((root / "sys/class/infiniband").glob("*"))
    if not devices:
        names = ("NIC links", "NIC errors", "MTU", "ECN", "PFC", _RETRANSMIT)
        return [Finding(name, "unknown", "no RDMA device is visible here") for name in names]
    return [finding for device in devices for finding in _check_device(root, device)]


def _check_device(root: Path, device: Path) -> Iterator[Finding]:
    for port in sorted((device / "ports").glob("*")):
        where = f"{device.name}/{port.name}"
        yield _link(port, where)
        yield _errors(port, where)
    ethernet = any("Ethernet" in (_read(port / "link_layer") or "") for port in (device / "ports").glob("*"))
    for name in sorted(path.name for path in (device / "device/net").glob("*")):
        yield _mtu(root, name, ethernet=ethernet)
        if ethernet:
            yield _ecn(root, name)
            yield _pfc(name)
    yield _retransmission(device.name)


def _link(port: Path, where: str) -> Finding:
    state, rate = _read(port / "state"), _read(port / "rate") or "rate unknown"
    if state is None:
        return Finding(f"NIC link {where}", "unknown", "its state cannot be read")
    if "ACTIVE" in state:
        return Finding(f"NIC link {where}", "ok", f"active, {rate}")
    return Finding(f"NIC link {where}", "change", state, "check cable, optics and switch port")


def _errors(port: Path, where: str) -> Finding:
    """Errors since the counters were last cleared."""
    found = {path.rpartition("/")[2]: _read(port / path) for path in _ERROR_COUNTERS}
    known = {name: int(value) for name, value in found.items() if value is not None and value.isdigit()}
    if not known:
        return Finding(f"NIC errors {where}", "unknown", "no counter can be read")
    raised = {name: value for name, value in known.items() if value}
    if not raised:
        return Finding(f"NIC errors {where}", "ok", f"none in {len(known)} counters")
    text = ", ".join(f"{name} {value}" for name, value in raised.items())
    advice = "signal quality of NIC, cable or switch: clear the counters, and replace the cable if they rise"
    return Finding(f"NIC errors {where}", "change", text, advice)


def _mtu(root: Path, name: str, *, ethernet: bool) -> Finding:
    text = _read(root / "sys/class/net" / name / "mtu")
    if text is None or not text.isdigit():
        return Finding(f"MTU {name}", "unknown", "cannot be read")
    if ethernet and int(text) < _ROCE_MTU:
        return Finding(f"MTU {name}", "change", text, f"ip link set {name} mtu 9000, and the switch alike")
    return Finding(f"MTU {name}", "ok", text)


def _ecn(root: Path, name: str) -> Finding:
    """Priorities on which the card marks (np) and reacts (rp)."""
    base = root / "sys/class/net" / name / "ecn"
    enabled = {side: _enabled(base / side / "enable") for side in ("roce_np", "roce_rp")}
    if None in enabled.values():
        return Finding(f"ECN {name}", "unknown", "the driver has no ecn/ folder")
    if all(enabled.values()):
        return Finding(f"ECN {name}", "ok", f"priorities {', '.join(enabled['roce_np'] or [])}")
    advice = f"echo 1 > {base}/roce_{{np,rp}}/enable/PRIORITY for the priority that RoCE uses"
    return Finding(f"ECN {name}", "change", "off", advice)


def _enabled(folder: Path) -> list[str] | None:
    """Priorities that are on; None if unknown."""
    values = {path.name: _read(path) for path in sorted(folder.glob("*"))}
    return [name for name, value in values.items() if value == "1"] if values else None


def _pfc(name: str) -> Finding:
    """iproute2's `dcb` shows the priorities with flow control."""
    text = _run(["dcb", "-j", "pfc", "show", "dev", name])
    if text is None:
        return Finding(f"PFC {name}", "unknown", "`dcb` is missing or was refused; look at mlnx_qos -i")
    return Finding(f"PFC {name}", "ok", " ".join(text.split()))


def _retransmission(device: str) -> Finding:
    """The firmware's RoCE register, read with NVIDIA's tools; for short flaps it should be on (4.4)."""
    text = _run(["mlxreg", "-d", device, "--reg_name", "ROCE_ACCL", "--get"])
    name = f"{_RETRANSMIT} {device}"
    if text is None:
        return Finding(name, "unknown", "`mlxreg` is missing or was refused (root is needed)")
    line = next((line for line in text.splitlines() if "roce_adp_retrans_en" in line), "")
    if not line:
        return Finding(name, "unknown", "the firmware has no such setting")
    if line.split("|")[-1].strip().endswith("1"):
        return Finding(name, "ok", "on")
    advice = f"mlxreg -d {device} --reg_name ROCE_ACCL --set roce_adp_retrans_en=1"
    return Finding(name, "change", "off", advice)


def _run(command: list[str]) -> str | None:
    """Output of a tool, None when there is none."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
