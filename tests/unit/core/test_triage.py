"""Which ranks are suspected of a stall, by what each of them was doing."""

from __future__ import annotations

import pytest

from megascale.core.contract.events import RankEvidence
from megascale.core.decide.triage import suspects


def job(*ranks: RankEvidence, per_node: int = 1) -> dict[str, list[RankEvidence]]:
    nodes: dict[str, list[RankEvidence]] = {}
    for each in ranks:
        nodes.setdefault(f"n-{each.rank // per_node}", []).append(each)
    return nodes


def rank(number: int, state: str | None = "S", phase: str = "forward", step: int = 9, collectives: int = -1):
    return RankEvidence(number, state, step, phase, 0, collectives)


def found(evidence, **size):
    return [(s.node, s.rank, s.sure) for s in suspects(evidence, **size)]


def test_nothing_heard_is_inconclusive():
    assert suspects({}) == []
    assert suspects({"n-0": []}) == []


def test_ranks_that_all_do_the_same_are_inconclusive():
    assert suspects(job(*(rank(i) for i in range(4)))) == []


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("T", "is stopped by a signal"),
        ("t", "is stopped by a debugger"),
        ("Z", "is a zombie"),
        (None, "has no process"),
    ],
)
def test_a_process_that_cannot_run_is_sure(state, words):
    (suspect,) = suspects(job(rank(0), rank(1), rank(2, state), rank(3)))
    assert (suspect.node, suspect.rank, suspect.sure) == ("n-2", 2, True)
    assert suspect.why == f"rank 2 {words}"


def test_every_process_that_cannot_run_is_named_in_rank_order():
    evidence = job(*(rank(i, "T" if i in (5, 2) else "S") for i in range(8)), per_node=2)
    assert found(evidence) == [("n-1", 2, True), ("n-2", 5, True)]


def test_sure_suspects_come_first_and_a_rank_is_named_once():
    evidence = job(rank(0, "D"), rank(1, "Z", "backward"), rank(2), rank(3), rank(4))
    assert found(evidence) == [("n-1", 1, True), ("n-0", 0, False)]


def test_a_rank_that_sleeps_uninterruptibly_is_named_but_not_sure():
    (suspect,) = suspects(job(rank(0), rank(1, "D"), rank(2)))
    assert (suspect.node, suspect.rank, suspect.sure) == ("n-1", 1, False)
    assert suspect.why == "rank 1 sleeps uninterruptibly (driver or file system)"


def test_a_rank_in_another_phase_than_most_is_named_but_not_sure():
    (suspect,) = suspects(job(rank(0), rank(1), rank(2, phase="data"), rank(3)))
    assert (suspect.node, suspect.rank, suspect.sure) == ("n-2", 2, False)
    assert suspect.why == "rank 2 is in data of step 10, most in forward"


def test_a_rank_at_another_step_than_most_is_named():
    (suspect,) = suspects(job(rank(0), rank(1, step=8), rank(2)))
    assert suspect.why == "rank 1 is in forward of step 9, most in forward"


def test_without_a_majority_no_phase_stands_out():
    assert suspects(job(rank(0), rank(1), rank(2, phase="data"), rank(3, phase="data"))) == []


def test_a_rank_that_entered_fewer_collectives_than_all_others_is_sure():
    (suspect,) = suspects(job(rank(0, collectives=70), rank(1, collectives=69), rank(2, collectives=70)))
    assert (suspect.node, suspect.rank, suspect.sure) == ("n-1", 1, True)
    assert suspect.why == "rank 1 entered 69 collectives, others 70"


def test_at_most_half_of_the_ranks_are_named_as_behind():
    assert found(job(rank(0, collectives=70), rank(1, collectives=69))) == [("n-1", 1, True)]
    three = job(rank(0, collectives=70), rank(1, collectives=69), rank(2, collectives=69))
    assert found(three) == []


def test_ranks_behind_on_several_nodes_or_at_several_counts_are_not_sure():
    two_nodes = job(*(rank(i, collectives=69 if i in (1, 2) else 70) for i in range(6)))
    assert found(two_nodes) == [("n-1", 1, False), ("n-2", 2, False)]
    one_node = job(*(rank(i, collectives=69 if i in (2, 3) else 70) for i in range(8)), per_node=2)
    assert found(one_node) == [("n-1", 2, True), ("n-1", 3, True)]
    three_counts = job(*(rank(i, collectives=68 + min(i, 2)) for i in range(6)))
    assert found(three_counts) == [("n-0", 0, False)]


def test_ranks_that_count_no_collectives_are_left_out_and_none_entered_is_a_count():
    evidence = job(rank(0, collectives=70), rank(1), rank(2, collectives=70), rank(3))
    assert found(evidence) == []
    assert found(job(rank(0, collectives=1), rank(1, collectives=0), rank(2, collectives=1))) == [
        ("n-1", 1, True)
    ]


def test_collectives_are_compared_within_a_pipeline_stage():
    counts = (70, 70, 70, 30, 30, 29)
    evidence = job(*(rank(i, collectives=count) for i, count in enumerate(counts)))
    assert found(evidence, ranks=6, stages=2) == [("n-5", 5, True)]
    assert found(job(*(rank(i, collectives=70 if i < 3 else 30) for i in range(6))), ranks=6, stages=2) == []
    assert [s[1] for s in found(evidence, ranks=6, stages=1)] == [5]
