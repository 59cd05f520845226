"""Published figures against simulated ones, with the residual; nothing is tuned here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from megascale.sim.compare import Variant
from megascale.sim.failures import DAY_S
from megascale.sim.result import Result
from megascale.sim.scenario import Figure, Scenario

_HOURS_A_DAY: Final = 24.0
_MEASURES: Final[dict[str, Callable[[Result], float]]] = {
    "effectiveTrainingTime": lambda result: result.effective_training_time,
    "automaticShare": lambda result: result.automatic_share,
    "restarts": lambda result: float(result.restarts),
    "restartsPerDay": lambda result: result.restarts / (result.wall_s / DAY_S),
    "faults": lambda result: float(result.faults),
    "mtbfHours": lambda result: result.wall_s / DAY_S * _HOURS_A_DAY / max(1, result.faults),
}


@dataclass(frozen=True, slots=True)
class Compared:
    """A published figure beside the simulated one.

    Attributes:
        residual: how far the simulated value misses what was published, as a share; 0 where an
            inequality holds.
    """

    figure: Figure
    simulated: float

    @property
    def residual(self) -> float:
        off = self.simulated / self.figure.value - 1.0
        met = (self.figure.relation == "atLeast" and off >= 0) or (
            self.figure.relation == "atMost" and off <= 0
        )
        return 0.0 if met else off


def compare_figures(scenario: Scenario, variants: Sequence[Variant]) -> list[Compared]:
    """Every published figure whose policy was simulated at the original durations."""
    return [
        Compared(figure, variant.estimate(_MEASURES[figure.name]).mean)
        for figure in scenario.figures
        for variant in variants
        if variant.policy == figure.policy and variant.stretch == 1.0
    ]
