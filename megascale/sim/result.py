"""The figures of a campaign, as they are published: by class of fault and by goodput phase."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megascale.core.contract.vocabulary import Milestone
from megascale.core.state.goodput import GoodputPhase
from megascale.core.state.record import Incident
from megascale.sim.campaign import Ledger
from megascale.sim.failures import FALSE_HANG, FALSE_SILENCE, Injection

_FALSE = (FALSE_HANG, FALSE_SILENCE)
_MILESTONES = (
    ("detection", Milestone.FAULT, Milestone.DETECTED),
    ("diagnosis", Milestone.DETECTED, Milestone.DECIDED),
    ("recovery", Milestone.DECIDED, Milestone.FIRST_STEP),
)


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class of faults; seconds as (median, 99th percentile), None where no incident got so far."""

    count: int
    automatic: int
    detection: tuple[float, float] | None
    diagnosis: tuple[float, float] | None
    recovery: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        stages = {"detection": self.detection, "diagnosis": self.diagnosis, "recovery": self.recovery}
        spread = {name: _spread_json(value) for name, value in stages.items()}
        return {"count": self.count, "automatic": self.automatic, **spread}


@dataclass(frozen=True, slots=True)
class Result:
    """Figures of one campaign.

    Attributes:
        effective_training_time: distinct surviving steps x step time over wall time (MegaScale, 6.3).
        automatic_share: injected faults that no person had to act on.
        faults: injected, without repeats of the same defect and without false verdicts.
        goodput: seconds by phase, summing to wall_s; incidents: by cause as the core named it.
        spent_s: seconds the simulation took.
    """

    effective_training_time: float
    automatic_share: float
    wrong_evictions: int
    restarts: int
    pages: int
    job_failures: int
    exclusions: int
    faults: int
    wall_s: float
    spent_s: float
    events: int
    goodput: dict[str, float] = field(default_factory=dict)
    incidents: dict[str, int] = field(default_factory=dict)
    per_class: dict[str, ClassResult] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "effectiveTrainingTime": self.effective_training_time,
            "automaticShare": self.automatic_share,
            "wrongEvictions": self.wrong_evictions,
            "restarts": self.restarts,
            "pages": self.pages,
            "jobFailures": self.job_failures,
            "exclusions": self.exclusions,
            "faults": self.faults,
            "wallSeconds": self.wall_s,
            "simulatedInSeconds": self.spent_s,
            "events": self.events,
            "goodput": self.goodput,
            "incidents": self.incidents,
            "perClass": {name: each.to_json() for name, each in self.per_class.items()},
        }


def result_of(ledger: Ledger) -> Result:
    """The figures of a campaign that has run."""
    real = [injection for injection in ledger.injections if injection.kind not in _FALSE]
    first = [injection for injection in real if not injection.again]
    needed = _needed_a_person(ledger)
    by_class: dict[str, list[Injection]] = {}
    for injection in ledger.injections:
        by_class.setdefault(injection.kind, []).append(injection)
    causes: dict[str, int] = {}
    for incident in ledger.incidents.values():
        causes[incident.cause] = causes.get(incident.cause, 0) + 1
    phases = {str(phase): ledger.goodput.get(phase, 0.0) for phase in GoodputPhase}
    handled = sum(1 for injection in first if id(injection) not in needed)
    return Result(
        effective_training_time=ledger.steps * ledger.step_s / ledger.wall_s,
        automatic_share=handled / len(first) if first else 1.0,
        wrong_evictions=len(ledger.unfounded),
        restarts=ledger.restarts,
        pages=len(ledger.pages),
        job_failures=len(ledger.failures),
        exclusions=ledger.exclusions,
        faults=len(first),
        wall_s=ledger.wall_s,
        spent_s=ledger.spent_s,
        events=ledger.events,
        goodput=phases,
        incidents=dict(sorted(causes.items())),
        per_class={
            name: _class_result(injections, ledger.incidents, needed)
            for name, injections in sorted(by_class.items())
        },
    )


def _needed_a_person(ledger: Ledger) -> set[int]:
    """Indices of the faults that were the last before a person had to act."""
    found = set()
    for at in ledger.manual:
        before = [s for s in ledger.injections if s.at <= at and s.kind not in _FALSE]
        if before:
            original = next((s for s in reversed(before) if not s.again), before[-1])
            found.add(id(original))
    return found


def _class_result(
    injections: Sequence[Injection], incidents: dict[str, Incident], needed: set[int]
) -> ClassResult:
    first = [injection for injection in injections if not injection.again]
    spans: dict[str, list[float]] = {name: [] for name, _, _ in _MILESTONES}
    for injection in injections:
        incident = incidents.get(injection.incident)
        if incident is None:
            continue
        times = {name: milestone.at for name, milestone in incident.milestones.items()} | {
            Milestone.FAULT: injection.at
        }
        last = incidents[injection.last].milestones.get(Milestone.FIRST_STEP)
        if last is not None:
            times[Milestone.FIRST_STEP] = last.at
        for name, begin, end in _MILESTONES:
            if begin in times and end in times:
                spans[name].append(max(0.0, times[end] - times[begin]))
    automatic = sum(1 for injection in first if id(injection) not in needed)
    spreads = {name: _spread(values) for name, values in spans.items()}
    return ClassResult(len(first), automatic, spreads["detection"], spreads["diagnosis"], spreads["recovery"])


def _spread(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def _spread_json(spread: tuple[float, float] | None) -> dict[str, float] | None:
    return {"p50Seconds": spread[0], "p99Seconds": spread[1]} if spread else None
