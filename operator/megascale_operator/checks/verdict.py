"""The verdict of a check pod: JSON that `python -m megascale.diagnose` writes as termination message."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from megascale_operator.reconcile.records import PodRecord

Result = Literal["passed", "convicted", "unknown"]
_RESULTS: dict[str, Result] = {"healthy": "passed", "convicted": "convicted"}
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check; unknown never counts as passed."""

    result: Result
    reason: str


def verdict_of(pod: PodRecord) -> Verdict | None:
    """Return the verdict of a finished check pod, None while it runs."""
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
    return Verdict(result, str(found.get("reason") or result)[:_MAX_REASON])
