"""Spikes, NaN and decay."""

from __future__ import annotations

import math
import random

import pytest

from megascale.core.stats.spikes import DecayDetector, SpikeDetector


def test_jump_of_loss_is_a_spike_and_its_decline_is_not() -> None:
    detector, noise = SpikeDetector("loss"), random.Random(1)
    for step in range(300):
        assert detector.observe(step, 8.0 / (1 + step / 50) + noise.gauss(0, 0.03)) is None
    anomaly = detector.observe(300, 4.0)
    assert anomaly is not None
    assert (anomaly.kind, anomaly.step) == ("spike", 300)
    assert "running median" in anomaly.reason
    assert detector.observe(301, 1.2) is None


def test_five_times_rule_alone() -> None:
    detector = SpikeDetector("gradNorm", sigmas=0.0)
    for step in range(40):
        detector.observe(step, 1.0 + 0.5 * (step % 2))
    assert detector.observe(40, 5.0) is None
    anomaly = detector.observe(41, 9.0)
    assert anomaly is not None
    assert anomaly.kind == "spike"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_told_at_once(value: float) -> None:
    anomaly = SpikeDetector("loss").observe(1, value)
    assert anomaly is not None
    assert anomaly.kind == "not_a_number"


def test_warm_up_is_quiet() -> None:
    detector = SpikeDetector("loss")
    assert all(detector.observe(step, 10.0**step) is None for step in range(16))


def test_decay_is_told_once_and_again_after_recovery() -> None:
    detector, noise = DecayDetector("mfu", window=20), random.Random(2)
    levels = [0.50] * 200 + [0.47] * 200 + [0.50] * 200 + [0.46] * 200
    found = [
        anomaly
        for step, level in enumerate(levels)
        if (anomaly := detector.observe(step, level + noise.gauss(0, 0.004)))
    ]
    assert [anomaly.kind for anomaly in found] == ["decay", "decay"]
    assert 200 < found[0].step < 300
    assert "below its baseline" in found[0].reason


def test_slow_decay_is_found_against_the_best_level() -> None:
    detector = DecayDetector("mfu", window=10)
    found = [detector.observe(step, 0.5 * (1 - step / 10_000)) for step in range(1000)]
    assert sum(anomaly is not None for anomaly in found) == 1


def test_swing_of_two_percent_is_no_decay() -> None:
    detector = DecayDetector("mfu", window=20)
    assert all(detector.observe(step, 0.5 + 0.005 * math.sin(step / 150)) is None for step in range(3000))
