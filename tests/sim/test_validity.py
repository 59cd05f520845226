"""Published figures are met under a policy that mimics the published one (docs/simulator.md)."""

from __future__ import annotations

import pytest

from megascale.sim.compare import run_variants
from megascale.sim.scenario import load, names
from megascale.sim.validity import compare_figures

RESIDUAL = {"restarts": 0.15, "faults": 0.15, "mtbfHours": 0.2, "effectiveTrainingTime": 0.05}


@pytest.mark.parametrize(
    "name",
    ["megascale", *(pytest.param(name, marks=pytest.mark.slow) for name in ("meta-rsc", "byterobust"))],
)
def test_published_figures(name: str) -> None:
    scenario = load(name)
    policies = list(dict.fromkeys(figure.policy for figure in scenario.figures))
    compared = compare_figures(scenario, run_variants(scenario, policies=policies, seeds=[0]))
    assert len(compared) == len(scenario.figures)
    for each in compared:
        assert abs(each.residual) <= RESIDUAL.get(each.figure.name, 0.05), each


def test_every_scenario_with_a_published_policy_says_what_was_calibrated() -> None:
    for name in names():
        scenario = load(name)
        assert scenario.calibrated or not scenario.figures
