"""What the core is told of a node's ranks."""

from __future__ import annotations

import math

from megascale.driver.wire import node_progress
from megascale.rpc import megascale_pb2 as pb


def rank(number: int, **fields: object) -> pb.RankStatus:
    return pb.RankStatus(rank=number, phase="forward", **fields)


def test_one_record_stands_for_all_ranks() -> None:
    (found,) = node_progress(
        [
            rank(8, step=4, stall_seconds=2.0, groups_at=10.0, loaded_at=11.0, snapshot_seconds=0.5),
            rank(9, step=5, stall_seconds=1.0, groups_at=12.0, progress_at=20.0, step_seconds=0.25),
            rank(10, step=5, loss=2.5, grad_norm=1.5, groups_at=11.0, loaded_at=13.0),
        ]
    )
    assert (found.rank, found.step, found.progress_at, found.step_seconds) == (9, 5, 20.0, 0.25)
    assert (found.stall_seconds, found.snapshot_seconds) == (2.0, 0.5)
    assert (found.groups_at, found.loaded_at) == (12.0, 0.0)
    assert (found.loss, found.grad_norm) == (2.5, 1.5)


def test_wrong_numbers_of_any_rank_are_told() -> None:
    (found,) = node_progress([rank(0, step=5, loss=2.0), rank(1, step=5, loss=math.nan)])
    assert found.loss is not None
    assert math.isnan(found.loss)


def test_a_node_without_ranks_only_beats() -> None:
    assert node_progress([]) == ()
