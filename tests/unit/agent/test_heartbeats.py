"""When an agent sends heartbeats."""

from __future__ import annotations

import itertools

import pytest

from megascale.agent.link import heartbeat_is_due


@pytest.mark.parametrize("period_s", [0.2, 1.0, 5.0, 6.3])
def test_beats_are_a_period_apart_and_fall_on_common_times(period_s: float) -> None:
    sample_s, slot_s = period_s / 100.0, period_s / 20.0
    for first in range(7):
        sent_at = now = 1.8e9 + first * slot_s * 1.37
        heartbeats = []
        while len(heartbeats) < 50:
            now += sample_s
            if heartbeat_is_due(sent_at, now, period_s):
                heartbeats.append(now)
                sent_at = now
        gaps = [later - earlier for earlier, later in itertools.pairwise(heartbeats)]
        assert sum(gaps) / len(gaps) == pytest.approx(period_s, rel=0.01)
        assert max(gaps) <= period_s + slot_s
        # each at the first look after a slot began
        assert all(heartbeat % slot_s <= 1.5 * sample_s for heartbeat in heartbeats)


def test_a_clock_set_back_does_not_silence_the_node() -> None:
    assert heartbeat_is_due(sent_at=1.8e9, now=1.8e9 - 3600.0, period_s=5.0)
    assert not heartbeat_is_due(sent_at=1.8e9, now=1.8e9 + 4.0, period_s=5.0)
