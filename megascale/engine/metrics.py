"""Step records of a job, appended to `<run_dir>/metrics.jsonl` by rank 0.

Keys: job, attempt, term, rank, node; step; loss and gradNorm of the global batch, before the update; lr;
tokens up to the step; stepSeconds, of which dataSeconds waiting for data; stallSeconds blocked by saves in
this launch so far; flops, operations per second of one rank; peakFlops, the peak of its device (0 = unknown),
so that flops / peakFlops is the model FLOP utilisation; time, Unix seconds.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self


def _exact(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """None for NaN and infinity, which JSON lacks; other values as they are."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """Appends one JSON line per step, each in one write, so that lines of two attempts never interleave."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, record: dict[str, Any]) -> None:
        line = json.dumps({key: _exact(value) for key, value in record.items()}, allow_nan=False)
        os.write(self._descriptor, line.encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
