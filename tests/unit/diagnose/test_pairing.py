"""Pairs and re-pairing: who is convicted for which faults, for any number of nodes."""

from __future__ import annotations

import random
from collections.abc import Callable, Set
from typing import Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megascale.diagnose.pairing import MAX_ROUNDS, Conclusion, Pairings, PairResult, waves

Fault = tuple[float, Literal["", "failed", "wrong"]]
Outcome = Callable[[str, str], Fault]
_LEAST = 0.4


def names(count: int) -> list[str]:
    return [f"n{i}" for i in range(count)]


def run(nodes: list[str], outcome: Outcome, *, rounds: int = MAX_ROUNDS, seed: int = 0) -> Pairings:
    """Test pairs as a coordinator does; `outcome` gives the slow-down and the fault of a pair."""
    noise = random.Random(seed)
    pairings = Pairings(nodes, least=_LEAST)
    while pairings.round < rounds and (pairs := pairings.next_round()):
        for wave in waves(pairs, len(nodes)):
            assert len({node for pair in wave for node in pair}) == 2 * len(wave)
        while pairs:
            for a, b in pairs:
                factor, fault = outcome(a, b)
                seconds = None if fault == "failed" else 0.01 * factor * noise.uniform(0.9, 1.25)
                pairings.add(PairResult(a, b, pairings.round, seconds, fault))
            pairs = pairings.doubtful()
    return pairings


def faulty(bad: dict[str, Fault], links: Set[frozenset[str]] = frozenset()) -> Outcome:
    def outcome(a: str, b: str) -> Fault:
        found = [bad[node] for node in (a, b) if node in bad]
        if frozenset((a, b)) in links:
            found.append((10.0, ""))
        if not found:
            return 1.0, ""
        return max(factor for factor, _ in found), max(fault for _, fault in found)

    return outcome


faults = st.sampled_from([(10.0, ""), (4.0, ""), (1.0, "failed"), (1.0, "wrong")])
counts = st.integers(2, 200)


@given(st.data(), counts, faults, st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_any_single_bad_node_is_the_only_one_convicted(data, count, fault, seed):
    nodes = names(count)
    bad = data.draw(st.sampled_from(nodes))
    found = run(nodes, faulty({bad: fault}), seed=seed).conclude()
    if count == 2:  # a pair cannot tell which of its nodes it is; nor that it is slow, without another
        assert found.convicted == ()
        assert bool(found.undecided) == bool(fault[1])
    else:
        assert found.convicted == (bad,)
        assert (found.links, found.undecided) == ((), ())


@given(st.data(), st.integers(4, 200), faults)
@settings(max_examples=100, deadline=None)
def test_two_rounds_are_enough_for_a_single_bad_node(data, count, fault):
    nodes = names(count)
    bad = data.draw(st.sampled_from(nodes))
    assert run(nodes, faulty({bad: fault}), rounds=2).conclude().convicted == (bad,)


@given(st.integers(0, 98), st.integers(4, 200), faults, faults)
@settings(max_examples=100, deadline=None)
def test_two_rounds_are_enough_for_two_bad_nodes_of_one_pair(first, count, one, other):
    assume(2 * first + 1 < count)
    nodes = names(count)
    pair = nodes[2 * first : 2 * first + 2]
    found = run(nodes, faulty(dict(zip(pair, (one, other), strict=True))), rounds=2).conclude()
    assert list(found.convicted) == pair


@given(st.data(), st.integers(4, 200), faults, faults, st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_any_two_bad_nodes_are_convicted_and_nobody_else(data, count, one, other, seed):
    nodes = names(count)
    pair = data.draw(st.lists(st.sampled_from(nodes), min_size=2, max_size=2, unique=True))
    found = run(nodes, faulty(dict(zip(pair, (one, other), strict=True))), seed=seed).conclude()
    assert set(found.convicted) == set(pair)
    assert found.links == ()


@pytest.mark.parametrize("one", [(10.0, ""), (4.0, ""), (1.0, "failed")])
@pytest.mark.parametrize("other", [(10.0, ""), (4.0, ""), (1.0, "failed")])
def test_two_bad_nodes_of_three_never_convict_the_good_one(one, other):
    for good in range(3):
        nodes = names(3)
        bad = [node for i, node in enumerate(nodes) if i != good]
        found = run(nodes, faulty(dict(zip(bad, (one, other), strict=True)))).conclude()
        assert nodes[good] not in found.convicted


@given(st.data(), st.integers(3, 200), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_one_bad_link_convicts_nobody_and_is_named_if_it_was_tested(data, count, seed):
    nodes = names(count)
    link = data.draw(st.lists(st.sampled_from(nodes), min_size=2, max_size=2, unique=True).map(frozenset))
    pairings = run(nodes, faulty({}, {link}), seed=seed)
    found = pairings.conclude()
    assert found.convicted == ()
    assert found.undecided == ()
    tested = any(result.key == link for result in pairings.results)
    assert [frozenset(pair) for pair in found.links] == ([link] if tested else [])
    if count <= 5:
        assert tested


@given(counts, st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_nothing_is_wrong_and_nothing_is_said(count, seed):
    pairings = run(names(count), faulty({}), seed=seed)
    assert pairings.conclude() == Conclusion((), (), (), ())
    if count > 5:
        assert pairings.round == 1


@given(st.data(), counts)
@settings(max_examples=100, deadline=None)
def test_any_set_of_bad_nodes_ends_within_the_bound_and_convicts_no_good_node(data, count):
    nodes = names(count)
    bad = data.draw(st.sets(st.sampled_from(nodes)))
    found = run(nodes, faulty(dict.fromkeys(bad, (1.0, "failed"))))
    assert found.round <= MAX_ROUNDS
    assert set(found.conclude().convicted) <= bad


def test_every_node_is_in_a_pair_of_neighbours_first():
    for count in range(2, 30):
        pairs = Pairings(names(count), least=_LEAST).next_round()
        assert {node for pair in pairs for node in pair} == set(names(count))
        assert pairs[0] == ("n0", "n1")


def test_a_pair_measured_three_times_counts_as_its_median():
    pairings = Pairings(names(2), least=_LEAST)
    for seconds in (0.5, 0.1, 0.3):
        pairings.add(PairResult("n0", "n1", 1, seconds))
    assert [result.seconds for result in pairings.results] == [0.3]


def test_a_fault_is_not_outweighed_by_good_measurements():
    pairings = Pairings(names(2), least=_LEAST)
    for fault in ("", "wrong", ""):
        pairings.add(PairResult("n0", "n1", 1, 0.1, fault))  # type: ignore[arg-type]
    assert pairings.bad() == {frozenset(("n0", "n1"))}


def test_a_slow_pair_and_the_fastest_are_measured_again_and_no_other():
    pairings = Pairings(names(6), least=_LEAST)
    first, second, third = pairings.next_round()
    for pair, seconds in ((first, 0.01), (second, 0.1), (third, 0.011)):
        pairings.add(PairResult(*pair, 1, seconds))
    assert pairings.doubtful() == [second, first]
    for pair, seconds in ((first, 0.09), (second, 0.1)):
        pairings.add(PairResult(*pair, 1, seconds))
        pairings.add(PairResult(*pair, 1, seconds))
    assert pairings.bad() == {frozenset(first), frozenset(second)}  # the first had been lucky
    assert pairings.doubtful() == [third]
    for _ in range(2):
        pairings.add(PairResult(*third, 1, 0.1))
    assert pairings.bad() == set()
    assert pairings.doubtful() == []


def test_all_pairs_failing_accuses_no_single_node():
    found = run(names(8), lambda *_: (1.0, "failed")).conclude()
    assert found.convicted == ()
    assert found.undecided


def test_a_node_that_was_never_paired_is_said_to_be_unmeasured():
    assert Pairings(["n0"], least=_LEAST).conclude().unmeasured == ("n0",)


def test_waves_respect_the_limit():
    pairs = [("a", "b"), ("c", "d"), ("e", "f"), ("f", "a")]
    assert waves(pairs, 1) == [[pair] for pair in pairs]
    assert waves(pairs, 3) == [pairs[:3], pairs[3:]]
