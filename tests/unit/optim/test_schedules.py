from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.job.megatron import Optimizer
from megascale.optim.schedules import learning_rate, scheduled_rate


def rate(step: int, name: str, **changes: Any) -> float:
    settings: dict[str, Any] = {"peak": 1.0, "floor": 0.1, "warmup_steps": 10, "decay_steps": 110}
    return learning_rate(step, name=name, **(settings | changes))  # type: ignore[arg-type]


def test_cosine() -> None:
    assert rate(1, "cosine") == pytest.approx(0.1)
    assert rate(10, "cosine") == 1.0
    assert rate(60, "cosine") == pytest.approx(0.55)
    assert rate(110, "cosine") == pytest.approx(0.1)
    assert rate(500, "cosine") == pytest.approx(0.1)


def test_constant_stays_at_its_peak() -> None:
    assert [rate(step, "constant") for step in (5, 10, 11, 110)] == [0.5, 1.0, 1.0, 1.0]


def test_wsd_falls_at_the_end_only() -> None:
    assert [rate(step, "wsd") for step in (5, 10, 11, 88)] == [0.5, 1.0, 1.0, 1.0]
    assert rate(99, "wsd") == pytest.approx(0.55)
    assert rate(110, "wsd") == pytest.approx(0.1)
    assert rate(500, "wsd") == pytest.approx(0.1)
    # A decay over all steps begins where the warm-up ends.
    assert rate(11, "wsd", decay_fraction=1.0) == pytest.approx(0.1 + 0.9 * 99 / 100)
    assert [rate(step, "wsd", decay_fraction=0.0) for step in (110, 111)] == [1.0, 0.1]


def test_without_warm_up_the_first_step_is_near_the_peak() -> None:
    assert rate(1, "cosine", warmup_steps=0) == pytest.approx(1.0, abs=1e-3)


@given(step=st.integers(11, 200), name=st.sampled_from(["cosine", "constant", "wsd"]))
def test_after_warm_up_it_never_rises_and_stays_between_floor_and_peak(step: int, name: str) -> None:
    assert 0.1 - 1e-12 <= rate(step + 1, name) <= rate(step, name) <= 1.0


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'linear'"):
        rate(50, "linear")


def test_a_longer_job_keeps_its_curve_if_it_names_the_steps_of_the_decay() -> None:
    bent = Optimizer.model_validate({"lr": 1.0})
    kept = Optimizer.model_validate({"lr": 1.0, "schedule": {"decaySteps": 100}})
    curve = [scheduled_rate(step, bent, 100) for step in range(1, 201)]
    assert [scheduled_rate(step, kept, 200) for step in range(1, 201)] == curve
    assert scheduled_rate(100, bent, 200) == pytest.approx(0.5)
