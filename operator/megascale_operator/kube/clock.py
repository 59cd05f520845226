"""The clocks of a controller, replaceable in tests, and conversion of Kubernetes timestamps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_MICRO_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.%fZ"


@dataclass(frozen=True, slots=True)
class Clock:
    """`monotonic` (seconds) is for durations and deadlines, `utc` (Unix seconds) for stored timestamps."""

    monotonic: Callable[[], float] = time.monotonic
    utc: Callable[[], float] = time.time


def stamp(unix_s: float) -> str:
    """Format Unix seconds as a metav1.Time, in whole seconds."""
    return datetime.fromtimestamp(unix_s, UTC).strftime(_FORMAT)


def micro_stamp(unix_s: float) -> str:
    """Format Unix seconds as a metav1.MicroTime, which Leases use."""
    return datetime.fromtimestamp(unix_s, UTC).strftime(_MICRO_FORMAT)


def unix_s(text: str | None) -> float:
    """Return the Unix seconds of a metav1.Time or MicroTime; 0 for None, "" and malformed text."""
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
