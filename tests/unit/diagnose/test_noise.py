"""The judges under measured noise: figures of good nodes on a busy machine convict nobody (noise.json)."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megascale.diagnose.fleet import LEAST_CPU, LEAST_CPU_PAIR, node_checks
from megascale.diagnose.pairing import Pairings, PairResult

_NOISE = json.loads(Path(__file__).with_name("noise.json").read_text())
_RUNS = 20


def answers(node: list[float]) -> list[dict[str, Any]]:
    figures = zip(_NOISE["checks"], node, strict=True)
    return [
        {"rank": 0, "measures": [{"check": c, "value": v, "unit": "GB/s", "wrong": ""} for c, v in figures]}
    ]


def slow(passes: list[list[list[float]]]) -> set[str]:
    """Nodes that are called slow after these passes."""
    by_node = [{f"n{i}": answers(node) for i, node in enumerate(nodes)} for nodes in passes]
    found = node_checks(by_node, {}, LEAST_CPU)
    return {node for node, checks in found.items() if any(check.status == "slow" for check in checks)}


def runs_of(kind: str, length: int) -> Iterator[list[list[list[float]]]]:
    """Passes that followed each other, then random ones: what slows a machine comes in bursts or not."""
    passes = _NOISE[kind]
    draw = random.Random(7)
    for _ in range(_RUNS):
        at = draw.randrange(len(passes) - length + 1)
        yield passes[at : at + length]
        yield draw.sample(passes, length)


@pytest.mark.parametrize("kind", ["three", "four"])
def test_good_nodes_on_a_busy_machine_are_not_convicted(kind):
    for run in runs_of(kind, 6):
        if slow(run[:3]):  # then the coordinator makes three more passes
            assert slow(run) == set()


def test_a_slowed_node_is_convicted_all_the_same_and_nobody_else():
    for run in runs_of("slowed", 6):
        assert slow(run) == {"n1"}
        assert "n1" in slow(run[:3])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 16])
def test_good_pairs_on_a_busy_machine_convict_nobody(count):
    times = _NOISE["pair_ms"]
    draw = random.Random(11)
    for run in range(2 * _RUNS):
        at = draw.randrange(len(times))
        stream = (
            itertools.cycle(times[at:] + times[:at]) if run % 2 else iter(lambda: draw.choice(times), None)
        )
        pairings = Pairings([f"n{i}" for i in range(count)], least=LEAST_CPU_PAIR)
        while pairs := pairings.next_round():
            while pairs:
                for a, b in pairs:
                    pairings.add(PairResult(a, b, pairings.round, next(stream)))
                pairs = pairings.doubtful()
        assert pairings.conclude().convicted == ()
