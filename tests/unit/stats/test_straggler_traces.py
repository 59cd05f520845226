"""The analysis names the fault that was put into a trace, and nothing else."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from megascale.core.stats.stragglers import analyze
from megascale.core.stats.trace import Topology, Trace

CLASSES = [
    "slow_node",
    "slow_rank",
    "slow_link",
    "slow_ring",
    "stage_imbalance",
    "sequence_scatter",
    "host_pause",
    "data_stall",
]


@pytest.mark.parametrize("waits", ["stage", "all", "pipeline"])
@pytest.mark.parametrize("fault", CLASSES)
def test_fault_is_named(traces: ModuleType, fault: str, waits: str) -> None:
    for seed in range(4):
        shape = traces.Shape(2, 16, 1, 4, 150)
        trace, label = traces.make(fault, shape, seed, waits=waits)
        verdicts = analyze(trace)
        assert {verdict.kind for verdict in verdicts} == {label.kind}
        if label.node is not None:
            assert [verdict.node for verdict in verdicts] == [label.node]


@pytest.mark.parametrize("waits", ["stage", "all", "pipeline"])
@pytest.mark.parametrize("fault", ["none", "drift"])
def test_healthy_runs_give_no_verdict(traces: ModuleType, fault: str, waits: str) -> None:
    for seed in range(12):
        shape = (traces.Shape(), traces.Shape(1, 4, 1, 1, 200), traces.Shape(4, 4, 2, 8, 120))[seed % 3]
        assert analyze(traces.make(fault, shape, 100 + seed, waits=waits)[0]) == []


def test_slow_rank_is_convicted_and_not_its_waiting_peers(traces: ModuleType) -> None:
    trace, label = traces.make("slow_rank", traces.Shape(1, 8, 1, 4, 160), 5, size=0.1, onset=60)
    (verdict,) = analyze(trace)
    assert (verdict.kind, verdict.ranks, verdict.node) == ("slow_node", label.ranks, label.node)
    assert verdict.slowdown == pytest.approx(0.1, abs=0.02)
    assert abs(verdict.since_step - 61) <= 4
    assert verdict.confidence > 0.7
    slow = trace.topology.ranks.index(label.ranks[0])
    waiting = np.delete(trace.seconds["allreduce"][80:].mean(axis=0), slow)
    assert waiting.min() > trace.seconds["allreduce"][80:, slow].mean()  # the trap is in the data


def test_half_of_a_stage_may_be_slow(traces: ModuleType) -> None:
    trace, label = traces.make("slow_node", traces.Shape(1, 8, 1, 4, 150), 3, size=0.2, onset=30)
    (verdict,) = analyze(trace)
    assert (verdict.node, verdict.ranks) == (label.node, label.ranks)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_few_ranks(traces: ModuleType, ranks: int) -> None:
    trace, label = traces.make("slow_rank", traces.Shape(1, ranks, 1, 1, 150), 11, size=0.12, onset=50)
    assert [verdict.ranks for verdict in analyze(trace)] == [label.ranks]


def test_missing_rows_do_not_matter(traces: ModuleType) -> None:
    trace, label = traces.make("slow_rank", traces.Shape(steps=160), 2, size=0.15, onset=40)
    holes = np.random.default_rng(0)
    seconds = {
        name: np.where(holes.random(values.shape) < 0.15, np.nan, values)
        for name, values in trace.seconds.items()
    }
    verdicts = analyze(Trace(trace.steps, trace.topology, seconds))
    assert [verdict.ranks for verdict in verdicts if verdict.kind == "slow_node"] == [label.ranks]


def test_single_rank_stages_use_their_own_history(traces: ModuleType) -> None:
    shape = traces.Shape(4, 1, 1, 1, 160)
    late = analyze(traces.make("slow_rank", shape, 4, size=0.15, onset=80)[0])
    assert [verdict.kind for verdict in late] == ["slow_node"]
    assert "no stage peers" in late[0].reason
    ever = analyze(traces.make("slow_rank", shape, 4, size=0.15, onset=0)[0])
    assert [verdict.kind for verdict in ever] == ["stage_imbalance"]


def test_short_traces_and_lone_segments_are_inconclusive() -> None:
    topology = Topology((0, 1), ("a", "b"), (0, 0))
    short = Trace(np.arange(5), topology, {"forward": np.ones((5, 2))})
    assert analyze(short) == []
    only_data = Trace(np.arange(50), topology, {"data": np.full((50, 2), 0.1)})
    assert analyze(only_data) == []
