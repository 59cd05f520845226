"""The watch that notices when the driver's process did not run."""

from __future__ import annotations

import pytest

from megascale.driver.pauses import LEAST_S, PERIOD_S, PauseWatch


def test_only_what_is_missed_between_two_looks_is_a_pause() -> None:
    now = [100.0]
    watch = PauseWatch(lambda: now[0])
    for gap_s in (PERIOD_S, PERIOD_S + LEAST_S - 0.1, -3600.0):
        now[0] += gap_s
        assert watch.take() == 0.0
    now[0] += 40.0
    watch.look()
    now[0] += PERIOD_S
    watch.look()
    now[0] += 10.0
    assert watch.take() == pytest.approx(40.0 + 10.0 - 2 * PERIOD_S)
    assert watch.take() == 0.0
