"""Stalls in which the stacks show at once which rank the others wait for."""

from __future__ import annotations

from megascale.core.contract.events import RankEvidence
from megascale.core.decide.triage import suspects

BACKWARD = (
    "_engine_run_backward (torch/autograd/graph.py:979)",
    "backward (torch/autograd/__init__.py:395)",
    "Tensor.backward (torch/_tensor.py:623)",
    "<module> (hang.py:12)",
)
FETCH = ("fetch_batch_from_storage (hang.py:9)", "<module> (hang.py:12)")
REDUCE = (
    "all_reduce (torch/distributed/distributed_c10d.py:3002)",
    "_exception_logger.<locals>.wrapper (torch/distributed/c10d_logger.py:81)",
    "train (train.py:40)",
)
BARRIER = (
    "wait (torch/distributed/distributed_c10d.py:77)",
    "barrier (torch/distributed/distributed_c10d.py:4818)",
    "wrapper (torch/distributed/c10d_logger.py:81)",
    "save (train.py:71)",
)


def found(*stacks, **more):
    evidence = {
        f"n-{rank}": [RankEvidence(rank, "S", 30, "forward", 0, -1, stack)]
        for rank, stack in enumerate(stacks)
    }
    return suspects(evidence, ranks=len(stacks), **more)


def test_one_rank_outside_of_the_collective_that_the_others_wait_in_is_named_with_its_frame():
    (suspect,) = found(BACKWARD, FETCH)
    assert (suspect.node, suspect.rank, suspect.sure) == ("n-1", 1, False)
    assert suspect.why == (
        "rank 1 is in fetch_batch_from_storage (hang.py:9) while 1 of 2 ranks wait in Tensor.backward, "
        "called from <module> (hang.py:12)"
    )


def test_a_rank_inside_a_library_is_named_with_the_programs_frame():
    stack = ("read (torch/utils/data/reader.py:5)", "load (train.py:9)")
    (suspect,) = found(REDUCE, stack, REDUCE)
    assert "read (torch/utils/data/reader.py:5), called from load (train.py:9) while 2 of 3" in suspect.why
    assert "wait in all_reduce, called from train (train.py:40)" in suspect.why


def test_a_rank_in_another_collective_than_the_others_is_named():
    (suspect,) = found(REDUCE, REDUCE, BARRIER, REDUCE)
    assert (suspect.node, suspect.rank) == ("n-2", 2)
    assert suspect.why == (
        "rank 2 waits in barrier, called from save (train.py:71), "
        "3 of 4 in all_reduce, called from train (train.py:40)"
    )


def test_the_same_collective_at_another_place_of_the_program_is_another_one():
    later = (*REDUCE[:2], "evaluate (train.py:90)")
    (suspect,) = found(REDUCE, later, REDUCE)
    assert suspect.rank == 1


def test_two_ranks_in_different_collectives_are_told_and_no_node_is_blamed():
    (suspect,) = found(REDUCE, BARRIER)
    assert suspect.node is None
    assert "barrier" in suspect.why
    assert "all_reduce" in suspect.why


def test_stacks_that_tell_nothing_name_nobody():
    assert found(BACKWARD, BACKWARD) == []
    assert found(FETCH, FETCH) == []
    assert found(FETCH, FETCH, BACKWARD) == []
    assert found(BACKWARD, ("no stack: py-spy is not installed",)) == []
    assert found((), ()) == []


def test_stages_of_a_pipeline_wait_in_places_of_their_own():
    assert found(REDUCE, REDUCE, BARRIER, BARRIER, stages=2) == []
    (suspect,) = found(REDUCE, REDUCE, BARRIER, FETCH, stages=2)
    assert suspect.rank == 3


def test_the_stack_counts_for_more_than_the_phase():
    evidence = {
        "n-0": [RankEvidence(0, "S", 30, "data", 0, -1, REDUCE)],
        "n-1": [RankEvidence(1, "S", 30, "forward", 0, -1, REDUCE)],
        "n-2": [RankEvidence(2, "S", 30, "forward", 0, -1, FETCH)],
    }
    assert [suspect.rank for suspect in suspects(evidence, ranks=3)] == [2, 0]
