"""Nodes held against each other: slow, wrong, failed; and the verdict on all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.diagnose.checks import Check, Floor, NodeReport
from megascale.diagnose.fleet import EXIT_CODES, FleetReport, node_checks, pair_checks
from megascale.diagnose.pairing import Conclusion, Pairings, PairResult
from megascale.diagnose.peers import shares

_NOTHING = Conclusion((), (), (), ())


def one_pass(**speeds: float) -> dict[str, list[dict[str, Any]]]:
    return {
        node: [{"rank": 0, "measures": [{"check": "gemm", "value": v, "unit": "GFLOP/s", "wrong": ""}]}]
        for node, v in speeds.items()
    }


def slow_nodes(passes: list[dict[str, float]], least: float) -> list[str]:
    return [node for node, share in shares(passes).items() if share < least]


@given(
    st.integers(2, 100).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
    st.lists(st.floats(0.2, 5.0), min_size=3, max_size=5),
    st.floats(0.05, 0.35),
    st.randoms(use_true_random=False),
)
def test_one_slow_node_is_found_whatever_slows_all_of_them(place, common, factor, random):
    count, slow = place
    passes = [
        {f"n{i}": load * random.uniform(0.85, 1.1) * (factor if i == slow else 1.0) for i in range(count)}
        for load in common
    ]
    assert slow_nodes(passes, 0.5) == [f"n{slow}"]


def test_a_disturbed_pass_convicts_nobody():
    passes = [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.1, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}]
    assert slow_nodes(passes, 0.5) == []


def test_up_to_half_of_the_peers_may_be_slow():
    assert slow_nodes(([{"a": 1.0, "b": 1.0, "c": 0.2, "d": 0.2}]), 0.5) == ["c", "d"]


def test_a_lone_node_has_no_peers():
    assert shares([{"a": 1.0}]) == {}


def test_a_slow_node_is_convicted_with_its_share():
    found = node_checks([one_pass(a=10.0, b=10.0, c=2.0)] * 3, {}, 0.5)
    (check,) = found["c"]
    assert check.status == "slow"
    assert check.floor == Floor(5.0, "peers")
    assert check.detail == "20% of its peers' speed"
    assert [c.status for c in found["a"]] == ["ok"]


def test_the_table_convicts_where_all_peers_are_slow_alike():
    tables = {node: {"gemm": Floor(100.0, "table")} for node in "ab"}
    found = node_checks([one_pass(a=10.0, b=10.0)], tables, 0.5)
    assert [found[node][0].status for node in "ab"] == ["slow", "slow"]


def test_a_node_without_peers_or_table_is_unknown():
    (check,) = node_checks([one_pass(a=10.0)], {}, 0.5)["a"]
    assert check.status == "unknown"


def test_wrong_once_is_wrong():
    wrong = {"check": "gemm", "value": 10.0, "unit": "GFLOP/s", "wrong": "other bits"}
    passes = [one_pass(a=10.0, b=10.0), one_pass(a=10.0, b=10.0)]
    passes[1]["b"] = [{"rank": 0, "measures": [wrong]}]
    found = node_checks(passes, {}, 0.5)
    assert found["b"][0].status == "wrong"
    assert found["b"][0].detail == "rank 0: other bits (1 of 2 times)"
    assert found["a"][0].status == "ok"


def test_a_node_that_stopped_answering_failed():
    passes = [one_pass(a=10.0, b=10.0), one_pass(a=10.0)]
    passes[1]["b"] = [{"op": "node", "rank": 0, "error": "no answer within 50 s"}]
    statuses = {check.name: check.status for check in node_checks(passes, {}, 0.5)["b"]}
    assert statuses["node"] == "failed"


def pairs(*results: PairResult) -> dict[str, Check]:
    pairings = Pairings([f"n{i}" for i in range(6)], least=0.5)
    for result in results:
        pairings.add(result)
    return pair_checks(pairings.conclude(), pairings.results)


def test_pairs_say_who_is_at_fault_and_how():
    found = pairs(
        PairResult("n0", "n1", 1, 0.5),
        PairResult("n2", "n3", 1, 0.01),
        PairResult("n4", "n5", 1, None, "failed", "n5: did not finish in time"),
        PairResult("n0", "n2", 2, 0.5),
        PairResult("n1", "n3", 2, 0.01),
    )
    assert found["n0"].status == "slow"
    assert found["n0"].detail == "slow with every partner: n1, n2"
    assert {found[f"n{i}"].status for i in (1, 2, 3)} == {"ok"}
    assert {found[f"n{i}"].status for i in (4, 5)} == {"unknown"}


def report(**changes: Any) -> FleetReport:
    base: dict[str, Any] = {
        "reports": (NodeReport("a", "cpu", (Check("bits", "ok"),)),),
        "pairs": _NOTHING,
        "results": (),
        "rounds": 1,
        "seconds": 1.0,
        "complete": True,
    }
    return FleetReport(**(base | changes))


@pytest.mark.parametrize(
    ("changes", "verdict", "code"),
    [
        ({}, "healthy", 0),
        ({"complete": False}, "unknown", 0),
        ({"reports": (NodeReport("a", "", (Check("gemm", "unknown"),)),)}, "unknown", 0),
        ({"reports": (NodeReport("a", "", (Check("gemm", "slow"),)),)}, "convicted", 1),
        ({"pairs": Conclusion((), (("a", "b"),), (), ())}, "link", 1),
        ({"pairs": Conclusion((), (), (("a", "b"),), ())}, "undecided", 1),
        ({"unreachable": {"10.0.0.9:7070": "refused"}}, "unreachable", 3),
        (
            {
                "unreachable": {"10.0.0.9:7070": "refused"},
                "reports": (NodeReport("a", "", (Check("bits", "wrong"),)),),
            },
            "convicted",
            1,
        ),
    ],
)
def test_the_worst_that_was_found_is_the_verdict(changes, verdict, code):
    found = report(**changes)
    assert (found.verdict, EXIT_CODES[found.verdict]) == (verdict, code)
    assert found.document()["verdict"] == verdict
