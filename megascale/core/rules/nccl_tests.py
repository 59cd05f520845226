"""Output of nccl-tests: wrong sums, failed tests and sizes that are slow against the smaller ones."""

from __future__ import annotations

import re
from typing import Final

from megascale.core.rules.model import DEVICE, HARDWARE, SYMPTOM, LogRule, Verdict, log_rule

_SOURCE = "nccl-tests: common.cu and its tables"
_TYPES = r"(?:u?int(?:8|32|64)|half|float|double|bfloat16|fp8_\w+|f8e\dm\d)"
_ROW = rf"^\s*\d+\s+\d+\s+{_TYPES}\s+\w+\s+-?\d+\s+"
_HALF = r"[\d.]+\s+[\d.]+\s+[\d.]+\s+"
_COLUMNS = re.compile(
    rf"^\s*(?P<bytes>\d+)\s+\d+\s+{_TYPES}\s+\w+\s+-?\d+\s+[\d.]+\s+[\d.]+\s+(?P<out>[\d.]+)\s+(?:\d+"
    rf"|N/A)\s+[\d.]+"
    r"\s+[\d.]+\s+(?P<inplace>[\d.]+)\s+(?:\d+|N/A)\s*$"
)
_LARGE: Final = 1 << 20  # bytes; below it latency decides, and bandwidth varies
_SLOW: Final = 0.5  # share of the best bandwidth of smaller sizes

RULES: Final[tuple[LogRule, ...]] = (
    log_rule(
        "nccl-tests-wrong",
        rf"{_ROW}{_HALF}(?:[1-9]\d*\s+{_HALF}\S+|\S+\s+{_HALF}[1-9]\d*)\s*$|Out of bounds "
        rf"values\s*:\s*[1-9]\d*\s+FAILED",
        ("gpu", "alert"),
        words="float|half|int|double|fp8|f8e",
        weight=HARDWARE,
        min_level="debug",
        source=_SOURCE,
        advice="a GPU or a link computes wrong sums: run `megascale diagnose --nodes` to find which",
        example=(
            "   134217728      33554432     float     sum      -1   2512.1   53.43   53.43      0   2490.3"
            "   53.90   53.90     12"
        ),
    ),
    log_rule(
        "nccl-tests-verdict",
        r"^Out of bounds values\s*:\s*[1-9]\d*\s+FAILED",
        ("gpu", "alert"),
        words="out of bounds values",
        weight=HARDWARE,
        min_level="debug",
        source=_SOURCE,
        example="# Out of bounds values : 1 FAILED",
    ),
    log_rule(
        "nccl-tests-slow",
        r"^nccl-tests: size \d+ is slow",
        ("network", "alert"),
        words="nccl-tests: size",
        weight=DEVICE,
        source=_SOURCE,
        advice=(
            "a size reaches less than half the bus bandwidth of a smaller one: look for a slow link or rail"
        ),
        example="nccl-tests: size 268435456 is slow",
    ),
    log_rule(
        "nccl-tests-network",
        r"Test NCCL failure .*(?:system error|remote process|network)",
        ("network", "restart"),
        words="test nccl failure",
        weight=DEVICE,
        source=_SOURCE,
        example="h7: Test NCCL failure common.cu:1119 'unhandled system error'",
    ),
    log_rule(
        "nccl-tests-gpu",
        r"Test (?:CUDA|NCCL) failure|NCCL failure \S+\.cu:\d+",
        ("gpu", "restart"),
        words="test cuda failure|test nccl failure|nccl failure",
        weight=DEVICE,
        source=_SOURCE,
        unless=r"invalid (?:usage|argument)|out of memory",
        example="h7: Test CUDA failure common.cu:295 'an illegal memory access was encountered'",
    ),
    log_rule(
        "nccl-tests-failed",
        r"\bTest failure \S+\.cu:\d+",
        ("framework", "restart"),
        words="test failure",
        scope="consequence",
        weight=SYMPTOM,
        source=_SOURCE,
        example=" .. h7 pid 3288: Test failure common.cu:891",
    ),
)


class BandwidthTable:
    """Follows the rows of a table; a size that is far slower than a smaller one is named."""

    def __init__(self) -> None:
        self._best = 0.0

    def slow(self, line: str) -> Verdict | None:
        """The verdict for a row whose bus bandwidth is below half the best of the rows before it."""
        if "nThread" in line:
            self._best = 0.0
        row = _COLUMNS.match(line)
        if row is None or int(row["bytes"]) < _LARGE:
            return None
        bandwidth = min(float(row["out"]), float(row["inplace"]))
        best, self._best = self._best, max(self._best, bandwidth)
        if bandwidth >= _SLOW * best:
            return None
        return Verdict(
            "network",
            "alert",
            "nccl-tests-slow",
            weight=DEVICE,
            line=f"{row['bytes']} bytes at {bandwidth:g} GB/s, a smaller size reached {best:g} GB/s",
        )
