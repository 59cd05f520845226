"""Peak matmul rate of one rank, the denominator of MFU: rated for known GPUs, measured for CPUs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Final

import torch

from megascale.hardware import rated

_SIZE: Final = 768
_SECONDS: Final = 0.15


def rated_flops(device_name: str) -> float:
    """Rated dense bf16 FLOP/s of an accelerator; 0.0 if it is not in the table."""
    return rated(device_name).get("gemm", 0.0) * 1e12


def measure_flops(seconds: float = _SECONDS) -> float:
    """Best fp32 matmul rate of this process in FLOP/s, over `seconds` of square products.

    All ranks of a node call it at the same time, so that they share the machine as in training.
    """
    a, b = torch.ones(_SIZE, _SIZE), torch.ones(_SIZE, _SIZE)
    out = torch.empty(_SIZE, _SIZE)
    end = time.perf_counter() + seconds
    best = 0.0
    while (start := time.perf_counter()) < end:
        torch.mm(a, b, out=out)
        best = max(best, 2.0 * _SIZE**3 / (time.perf_counter() - start))
    return best


class PeakFile:
    """The measured rate of a node's ranks, kept across attempts in `<run_dir>/peak/<node>.json`."""

    def __init__(self, run_dir: Path, node: str) -> None:
        self._path = run_dir / "peak" / f"{node}.json"

    def read(self) -> float | None:
        """FLOP/s of one rank of the node, None when not measured yet."""
        try:
            return float(json.loads(self._path.read_text())["flopsPerRank"])
        except FileNotFoundError:
            return None

    def write(self, flops: float) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"flopsPerRank": flops}))
        temporary.replace(self._path)
