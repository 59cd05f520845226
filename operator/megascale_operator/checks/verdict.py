"""What the check of one node found: the JSON that `python -m megascale.diagnose` leaves behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from megascale_operator.reconcile.records import PodRecord

Result = Literal["passed", "convicted", "unknown"]
_RESULTS: dict[str, Result] = {"healthy": "passed", "convicted": "convicted"}
_REASON = 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """passed, convicted, or unknown, which is never taken for healthy."""

    result: Result
    reason: str


def verdict_of(pod: PodRecord) -> Verdict | None:
    """The verdict of a check pod that has ended, None while it runs."""
    if not pod.finished:
        return None
    try:
        found = json.loads(pod.message)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "verdict" not in found:
        why = pod.reason or f"exit code {pod.exit}"
        return Verdict("unknown", f"the check ended without a verdict: {why}")
    result = _RESULTS.get(str(found["verdict"]), "unknown")
    return Verdict(result, str(found.get("reason") or result)[:_REASON])
