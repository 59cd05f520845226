"""Rated speeds of accelerators: `hardware.yaml`, which names its sources and units."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

_TABLE: Final = Path(__file__).with_name("hardware.yaml")


@cache
def _table() -> list[dict[str, Any]]:
    from megascale.job.document import parse

    entries: list[dict[str, Any]] = parse(_TABLE.read_text(encoding="utf-8"), str(_TABLE)).data
    return entries


def rated(name: str) -> dict[str, float]:
    """Rates by kind (gemm in TFLOP/s; memory, link, fabric in GB/s) of what CUDA calls `name`.

    Empty if it is not in the table.
    """
    found = next((entry for entry in _table() if f" {entry['match']}" in f" {name}"), {})
    return {kind: float(rate) for kind, rate in found.items() if kind != "match"}
