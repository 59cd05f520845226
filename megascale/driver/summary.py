"""The summary of a run, written to `summary.json` and printed by `megascale run --json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megascale.core.machine import Core
from megascale.core.state.goodput import GoodputPhase
from megascale.driver.status import goodput_seconds, incident_document, incidents_of, reports_steps
from megascale.job import TrainingJob


def summarise(
    job: TrainingJob, core: Core, steps: Mapping[int, dict[str, Any]], now: float
) -> dict[str, Any]:
    """Return the summary as JSON values.

    Args:
        steps: step -> metrics line, as returned by `counted_steps`; rates are averages over these steps.
        now: Unix seconds, up to which goodput is counted.
    """
    record = core.record
    seconds = goodput_seconds(core, now)
    wall = sum(seconds.values())
    newest = max(record.commits, default=None)
    recorded = max(steps, default=0)
    step = max(recorded, core.live.step, record.best_step)
    busy = sum(float(line["stepSeconds"]) for line in steps.values())
    return {
        "job": job.metadata.name,
        "state": record.finish_state or str(record.state),
        "reason": record.finish_reason,
        "step": step,
        "steps": core.policy.steps,
        "reportsSteps": reports_steps(core),
        "loss": steps[recorded].get("loss") if steps and recorded == step else None,
        "restarts": sum(record.restarts.values()),
        "goodput": seconds.get(GoodputPhase.PRODUCTIVE, 0.0) / wall if wall else None,
        "goodputSeconds": {str(phase): round(s, 3) for phase, s in seconds.items()},
        "wallSeconds": round(wall, 3),
        "mfu": _mean_mfu(steps),
        "tokensPerSecond": _tokens(steps) / busy if busy else None,
        "checkpointStep": newest.step if newest else None,
        "incidents": [incident_document(incident) for incident in incidents_of(core)],
    }


def counted_steps(metrics: Path) -> dict[int, dict[str, Any]]:
    """Read step -> metrics line; the newest attempt that ran a step wins, and partial lines are skipped."""
    steps: dict[int, dict[str, Any]] = {}
    try:
        text = metrics.read_text()
    except FileNotFoundError:
        return steps
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        older = steps.get(line["step"])
        if older is None or line["attempt"] >= older["attempt"]:
            steps[line["step"]] = line
    return steps


def _tokens(steps: Mapping[int, dict[str, Any]]) -> float:
    """Return the tokens of the counted steps; a line's `tokens` is the total since the start of the job."""
    newest = max(steps, default=0)
    return float(steps[newest]["tokens"]) / newest * len(steps) if newest else 0.0


def _mean_mfu(steps: Mapping[int, dict[str, Any]]) -> float | None:
    shares = [line["flops"] / line["peakFlops"] for line in steps.values() if line.get("peakFlops")]
    return sum(shares) / len(shares) if shares else None
