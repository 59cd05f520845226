"""Several seeds and policies of one scenario: means with confidence intervals."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megascale.sim.campaign import Campaign
from megascale.sim.result import Result, result_of
from megascale.sim.scenario import Scenario

# Two-sided 95% quantiles of Student's t by degrees of freedom; beyond the table the normal one.
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
_NORMAL95 = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and half the width of its 95% interval; None for a single seed."""

    mean: float
    plus_minus: float | None

    def to_json(self) -> dict[str, float | None]:
        return {"mean": self.mean, "plusMinus95": self.plus_minus}


@dataclass(frozen=True, slots=True)
class Variant:
    """One policy at one stretch of the durations, over all seeds."""

    policy: str
    stretch: float
    results: tuple[Result, ...]

    def estimate(self, figure: Callable[[Result], float]) -> Estimate:
        return estimate([figure(result) for result in self.results])

    @property
    def label(self) -> str:
        return self.policy if self.stretch == 1.0 else f"{self.policy}, durations x{self.stretch:g}"


FIGURES: dict[str, Callable[[Result], float]] = {
    "effectiveTrainingTime": lambda result: result.effective_training_time,
    "automaticShare": lambda result: result.automatic_share,
    "wrongEvictions": lambda result: result.wrong_evictions,
    "faults": lambda result: result.faults,
    "restarts": lambda result: result.restarts,
    "pages": lambda result: result.pages,
}


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95% interval by Student's t."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean, None)
    quantile = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else _NORMAL95
    return Estimate(mean, quantile * statistics.stdev(values) / math.sqrt(len(values)))


def main_variant(variants: Sequence[Variant]) -> Variant:
    """The one whose details are shown: our policy at the original durations if it is there."""
    ours = [v for v in variants if v.policy == "ours" and v.stretch == 1.0]
    return (ours or list(variants))[0]


def run_variants(
    scenario: Scenario,
    *,
    policies: Sequence[str],
    seeds: Sequence[int],
    stretches: Sequence[float] = (1.0,),
    done: Callable[[], None] = lambda: None,
) -> list[Variant]:
    """Every policy at every stretch over every seed; `done` is called after each campaign."""
    variants = []
    for policy in policies:
        for stretch in stretches:
            results = []
            for seed in seeds:
                results.append(result_of(Campaign(scenario, policy=policy, seed=seed, stretch=stretch).run()))
                gc.collect()  # a world is full of cycles: its memory is given back before the next
                done()
            variants.append(Variant(policy, stretch, tuple(results)))
    return variants
