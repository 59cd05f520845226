"""Check the limits, memory, clock and network cards of this node, and recommend changes before it trains.

Every check answers ok, change or unknown; unknown means that the node does not expose the value, and is never
taken for ok.
"""

from __future__ import annotations

import ctypes
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from megascale.diagnose.nic import Finding, check_nics

_OPEN_FILES: Final = 65_536
_SHM_BYTES: Final = 1 << 30
_DISK_BYTES: Final = 10 << 30
_MEMORY_BYTES: Final = 1 << 30
_CLOCK_ERROR_S: Final = 0.1
_TIMEX_BYTES: Final = 512
_MAXERROR_AT: Final = 24
_STATUS_AT: Final = 40
_UNSYNCHRONISED: Final = 0x40


@dataclass(frozen=True, slots=True)
class Machine:
    """Where to look: another root in tests.

    Attributes:
        root: holds sys/, proc/ and dev/.
        folder: where runs and checkpoints go.
    """

    root: Path = Path("/")
    folder: Path = Path()


def examine(machine: Machine) -> list[Finding]:
    """All checks, in the order they are shown."""
    checks: list[Callable[[Machine], Finding]] = [
        _open_files,
        _locked_memory,
        _shared_memory,
        _memory,
        _disk,
        _clock,
        _driver,
    ]
    return [
        *(check(machine) for check in checks),
        *(_version(package) for package in ("torch", "megatron-core")),
        _nccl(),
        *check_nics(machine.root),
    ]


def _open_files(_: Machine) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _OPEN_FILES:
        return Finding("open files", "ok", str(soft))
    advice = f"each rank holds connections and data files: ulimit -n {_OPEN_FILES} (hard limit here: {hard})"
    return Finding("open files", "change", str(soft), advice)


def _locked_memory(machine: Machine) -> Finding:
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    value = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft >> 10} KiB"
    if soft == resource.RLIM_INFINITY:
        return Finding("locked memory", "ok", value)
    if not any((machine.root / "sys/class/infiniband").glob("*")):
        return Finding("locked memory", "ok", f"{value}; no RDMA device needs more")
    return Finding("locked memory", "change", value, "RDMA pins its buffers: ulimit -l unlimited")


def _shared_memory(machine: Machine) -> Finding:
    path = machine.root / "dev/shm"
    try:
        total = shutil.disk_usage(path).total
    except OSError as error:
        return Finding("shared memory", "unknown", f"cannot be read: {error.strerror}")
    if total >= _SHM_BYTES:
        return Finding("shared memory", "ok", _gib(total))
    advice = "NCCL and the data loader keep buffers in shm: docker --shm-size, or a memory emptyDir in a pod"
    return Finding("shared memory", "change", f"{total >> 20} MiB", advice)


def _memory(machine: Machine) -> Finding:
    try:
        text = (machine.root / "proc/meminfo").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return Finding("free memory", "unknown", "/proc/meminfo does not tell")
    if free >= _MEMORY_BYTES:
        return Finding("free memory", "ok", _gib(free))
    return Finding("free memory", "change", f"{free >> 20} MiB", "end what uses it, or train elsewhere")


def _disk(machine: Machine) -> Finding:
    try:
        usage = shutil.disk_usage(machine.folder)
    except OSError as error:
        return Finding("free disk", "unknown", f"{machine.folder}: {error.strerror}")
    value = f"{_gib(usage.free)} of {_gib(usage.total)}"
    if usage.free >= _DISK_BYTES:
        return Finding("free disk", "ok", value)
    return Finding(
        "free disk", "change", value, "checkpoints and logs go here: make room or set checkpoint.uri"
    )


def _clock(_: Machine) -> Finding:
    """What the kernel knows of its clock (adjtimex)."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return Finding("clock", "unknown", "the kernel does not tell (adjtimex)")
    error_s = ctypes.c_long.from_buffer(buffer, _MAXERROR_AT).value / 1e6
    status = ctypes.c_int.from_buffer(buffer, _STATUS_AT).value
    if status & _UNSYNCHRONISED:
        advice = "start chrony or systemd-timesyncd: times of several nodes are compared in timelines"
        return Finding("clock", "change", "not synchronised", advice)
    if error_s > _CLOCK_ERROR_S:
        return Finding("clock", "change", f"may be off by {error_s:.2f} s", "look at chronyc tracking")
    return Finding("clock", "ok", f"synchronised, off by at most {error_s * 1000:.1f} ms")


def _driver(machine: Machine) -> Finding:
    try:
        first = (machine.root / "proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return Finding("NVIDIA driver", "unknown", "no driver is loaded: GPUs cannot be judged")
    return Finding("NVIDIA driver", "ok", first.split(":", 1)[-1].strip())


def _version(package: str) -> Finding:
    try:
        return Finding(package, "ok", metadata.version(package))
    except metadata.PackageNotFoundError:
        return Finding(package, "change", "is not installed", f"pip install {package}")


def _nccl() -> Finding:
    for name in ("nvidia-nccl-cu13", "nvidia-nccl-cu12"):
        try:
            return Finding("NCCL", "ok", f"{metadata.version(name)} ({name})")
        except metadata.PackageNotFoundError:
            continue
    return Finding("NCCL", "unknown", "no NCCL package beside torch: a CPU build, or NCCL from the system")


def verdict(findings: list[Finding]) -> Literal["ok", "change"]:
    """Whether something must change."""
    return "change" if any(finding.status == "change" for finding in findings) else "ok"


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
