"""Shared by the benchmarks: a description of the machine, and dated result files."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "megatron-core", "grpcio", "numpy")


def machine() -> str:
    """Processor, cores, memory, kernel and versions, one line."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    total_kib = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cpu}, {cores} cores, {total_kib >> 20} GiB, Linux {platform.release()}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def write_result(name: str, body: str) -> Path:
    """Store `body` (Markdown) as results/<name>-<date>.md with a heading that says how it was made."""
    RESULTS.mkdir(exist_ok=True)
    date = time.strftime("%Y-%m-%d")
    path = RESULTS / f"{name}-{date}.md"
    command = " ".join(["python", *sys.argv])
    load = f"{os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores"
    path.write_text(
        f"# {name}, {date}\n\n- machine: {machine()}\n- load average at the end: {load}\n"
        f"- command: `{command}`\n\n{body}\n"
    )
    return path
