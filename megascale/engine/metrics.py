"""Step records of a job, appended to `<run_dir>/metrics.jsonl` by rank 0.

Keys: job, attempt, term, rank, node; step; loss and gradNorm of the global batch, before the update; lr;
tokens up to the step; stepSeconds, of which dataSeconds waiting for data; stallSeconds blocked by saves in
this launch so far; flops, operations per second of one rank; peakFlops, the peak of its device (0 = unknown),
so that flops / peakFlops is the model FLOP utilisation; time, Unix seconds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megascale.observe.lines import LineFile


def _exact(value: Any) -> Any:  # noqa: ANN401 - JSON values
    """None for NaN and infinity, which JSON lacks; other values as they are."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """Appends one JSON line per step; while the disk is full, lines are left out."""

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path)

    def append(self, record: dict[str, Any]) -> None:
        self._lines.append(json.dumps({key: _exact(value) for key, value in record.items()}, allow_nan=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
