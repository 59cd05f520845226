"""The online detector: recall within 50 steps, no suspicion of healthy nodes, once per fault."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from megascale.core.stats.online import StragglerDetector, Suspicion
from megascale.core.stats.trace import Trace


def replay(trace: Trace, detector: StragglerDetector | None = None) -> list[tuple[int, Suspicion]]:
    detector = detector or StragglerDetector(trace.topology)
    found = []
    for row, step in enumerate(trace.steps):
        at_step = {name: values[row] for name, values in trace.seconds.items()}
        found += [(row, suspicion) for suspicion in detector.observe(int(step), at_step)]
    return found


@pytest.mark.parametrize("fault", ["slow_node", "slow_rank"])
def test_ten_percent_is_seen_within_fifty_steps(traces: ModuleType, fault: str) -> None:
    for seed in range(10):
        onset = 40 + seed
        trace, label = traces.make(fault, traces.Shape(2, 8, 1, 4, 120), seed, size=0.1, onset=onset)
        ((row, suspicion),) = replay(trace)
        assert row - onset < 50
        assert (suspicion.node, suspicion.ranks) == (label.node, label.ranks)
        assert suspicion.slowdown == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    "fault", ["none", "drift", "sequence_scatter", "host_pause", "slow_link", "data_stall", "stage_imbalance"]
)
def test_other_conditions_convict_no_node(traces: ModuleType, fault: str) -> None:
    for seed in range(3):
        trace, _ = traces.make(fault, traces.Shape(4, 16, 1, 8, 300), seed)
        assert replay(trace) == []


def test_a_node_is_suspected_again_after_it_recovered(traces: ModuleType) -> None:
    trace, _ = traces.make("none", traces.Shape(1, 8, 1, 2, 400), 1)
    for start, end in ((40, 120), (240, 320)):
        for name in ("forward", "backward"):
            trace.seconds[name][start:end, 2] *= 1.2
    assert [suspicion.ranks for _, suspicion in replay(trace)] == [(2,), (2,)]


def test_threshold_can_be_raised_while_running(traces: ModuleType) -> None:
    trace, _ = traces.make("slow_rank", traces.Shape(1, 16, 1, 4, 150), 1, size=0.1, onset=20)
    detector = StragglerDetector(trace.topology)
    detector.min_slowdown = 0.2
    assert replay(trace, detector) == []


def test_missing_ranks_are_not_suspected(traces: ModuleType) -> None:
    trace, _ = traces.make("none", traces.Shape(1, 8, 1, 2, 120), 1)
    for values in trace.seconds.values():
        values[30:, 5] = np.nan
    assert replay(trace) == []
