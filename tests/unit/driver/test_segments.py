"""Segment times from rings of ranks to events of the core."""

from __future__ import annotations

from pathlib import Path

from megascale.agent.segments import SegmentFeed
from megascale.core.contract import events as ev
from megascale.driver.segments import SegmentBoard
from megascale.observe.segments import SegmentRing, segments_path
from megascale.rpc import megascale_pb2 as pb


def batch(rank: int, first: int, *seconds: float, attempt: int = 1) -> pb.SegmentTimes:
    times = pb.RankSegments(rank=rank, first_step=first, compute_s=seconds)
    return pb.SegmentTimes(attempt=attempt, ranks=[times])


def test_rings_become_batches_of_the_current_attempt(tmp_path: Path) -> None:
    paths = [tmp_path / f"n-{local}.rank" for local in range(2)]
    rings = [SegmentRing.create(segments_path(p), term=1, attempt=3, rank=r) for r, p in enumerate(paths)]
    ranks = list(enumerate(paths))
    feed = SegmentFeed()
    assert feed.batch(3, ranks) is None
    for ring, slow in zip(rings, (0.0, 1.0), strict=True):
        for step in (7, 8):
            ring.append(step, {"forward": 0.25, "backward": 0.5 + slow, "allreduce": 9.0})
    found = feed.batch(3, ranks)
    assert found is not None
    assert [(r.rank, r.first_step, list(r.compute_s)) for r in found.ranks] == [
        (0, 7, [0.75, 0.75]),
        (1, 7, [1.75, 1.75]),
    ]
    assert feed.batch(3, ranks) is None
    rings[0].append(9, {"forward": 1.0})
    assert feed.batch(4, ranks) is None  # the rank still runs the attempt before


def test_a_batch_is_bounded_and_has_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "n-0.rank"
    ring = SegmentRing.create(segments_path(path), term=1, attempt=1, rank=0)
    for step in [*range(1, 200), 300, 301]:
        ring.append(step, {"forward": 1.0})
    found = SegmentFeed().batch(1, [(0, path)])
    assert found is not None
    assert (found.ranks[0].first_step, len(found.ranks[0].compute_s)) == (300, 2)


def test_a_step_goes_on_when_all_ranks_are_there() -> None:
    board = SegmentBoard()
    assert board.take(batch(0, 1, 0.5, 0.5), 1, 2) == []
    assert board.take(batch(1, 1, 0.25), 1, 2) == [ev.SegmentTimes(1, 1, (0.5, 0.25))]
    assert board.take(batch(1, 2, 0.75), 1, 2) == [ev.SegmentTimes(1, 2, (0.5, 0.75))]
    assert board.take(batch(1, 1, 0.25), 1, 2) == []
    assert board.take(batch(0, 3, 0.5, attempt=2), 1, 2) == []
    assert board.take(batch(7, 3, 0.5), 1, 2) == []


def test_a_rank_that_tells_nothing_holds_nobody_up_for_long() -> None:
    board = SegmentBoard()
    assert board.take(batch(0, 1, *[0.5] * 64), 1, 2) == []
    found = board.take(batch(0, 65, *[0.5] * 2), 1, 2)
    assert found == [ev.SegmentTimes(1, 1, (0.5, 0.0)), ev.SegmentTimes(1, 2, (0.5, 0.0))]


def test_a_new_attempt_begins_anew() -> None:
    board = SegmentBoard()
    board.take(batch(0, 90, 0.5), 1, 2)
    assert board.take(batch(0, 5, 0.5, attempt=2), 2, 1) == [ev.SegmentTimes(2, 5, (0.5,))]
