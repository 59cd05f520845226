"""Traces of the second generator: other noise, layouts, waiting, holes. Nothing is fitted to these seeds."""

from __future__ import annotations

from types import ModuleType

import pytest

from megascale.core.stats.online import StragglerDetector
from megascale.core.stats.stragglers import analyze

FAULTS = [
    "none",
    "drift",
    "slow_node",
    "slow_rank",
    "slow_link",
    "stage_imbalance",
    "sequence_scatter",
    "host_pause",
    "data_stall",
]
SEEDS = range(80_000, 80_008)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_and_nothing_else(traces_other: ModuleType, fault: str) -> None:
    wrong = []
    for seed in SEEDS:
        trace, label = traces_other.make(fault, seed)
        verdicts = analyze(trace)
        named = {verdict.kind for verdict in verdicts} == {label.kind} - {""}
        if label.kind == "slow_node" and named:
            named = {verdict.node for verdict in verdicts} == {label.node}
        if not named:
            wrong.append((seed, label, [verdict.reason for verdict in verdicts]))
    assert len(wrong) <= 1, wrong


def test_twenty_five_slow_steps_of_fifty_are_enough(traces_other: ModuleType) -> None:
    hits = 0
    for seed in range(80_000, 80_020):
        fault = ("slow_node", "slow_rank")[seed % 2]
        trace, label = traces_other.make(fault, seed, size=0.1, steps=50, onset=25)
        hits += label.node in {verdict.node for verdict in analyze(trace) if verdict.kind == "slow_node"}
    assert hits >= 19


def test_a_stage_on_one_node_is_compared_with_its_past(traces_other: ModuleType) -> None:
    layout = traces_other.Layout(8, 4, 1, 8)
    for seed in range(80_000, 80_006):
        trace, label = traces_other.make("slow_node", seed, size=0.1, layout=layout, steps=100, onset=45)
        detector = StragglerDetector(trace.topology)
        found = [
            (row, suspicion)
            for row, step in enumerate(trace.steps)
            for suspicion in detector.observe(int(step), {k: v[row] for k, v in trace.seconds.items()})
        ]
        assert [suspicion.node for _, suspicion in found] == [label.node]
        assert 0 <= found[0][0] - 45 < 50
        assert "what was normal" in found[0][1].reason


@pytest.mark.parametrize("fault", ["none", "drift", "sequence_scatter", "host_pause"])
def test_lone_stages_without_a_fault_are_not_suspected(traces_other: ModuleType, fault: str) -> None:
    layout = traces_other.Layout(4, 4, 1, 4)
    for seed in range(80_000, 80_004):
        trace, _ = traces_other.make(fault, seed, layout=layout, steps=300)
        detector = StragglerDetector(trace.topology)
        for row, step in enumerate(trace.steps):
            assert detector.observe(int(step), {k: v[row] for k, v in trace.seconds.items()}) == []
