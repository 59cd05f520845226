"""Which step times of a node's ranks go to the driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from megascale.agent.segments import SegmentFeed
from megascale.observe.segments import SegmentRing, segments_path
from megascale.rpc import megascale_pb2 as pb


def feed_of(path: Path, *steps: int) -> pb.RankSegments | None:
    """What a feed makes of a ring with these steps; step n took n seconds."""
    ring = SegmentRing.create(segments_path(path), term=1, attempt=4, rank=3)
    for step in steps:
        ring.append(step, {"forward": float(step)})
    found = SegmentFeed().batch(4, [(3, path)])
    if found is None:
        return None
    assert found.attempt == 4
    (rank,) = found.ranks
    return rank


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ((0,), (0,)),
        ((0, 1, 2), (0, 1, 2)),
        ((5, 6, 8), (8,)),
        ((1, 3, 4), (3, 4)),
        (tuple(range(1, 101)), tuple(range(37, 101))),
    ],
    ids=["one", "all", "a-gap-before-the-last", "a-gap-after-the-first", "more-than-64"],
)
def test_the_newest_steps_that_follow_each_other_are_sent(
    tmp_path: Path, steps: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    found = feed_of(tmp_path / "n-0.rank", *steps)
    assert found == pb.RankSegments(rank=3, first_step=kept[0], compute_s=[float(step) for step in kept])


def test_ranks_without_news_are_left_out(tmp_path: Path) -> None:
    assert feed_of(tmp_path / "n-0.rank") is None
    assert SegmentFeed().batch(4, [(3, tmp_path / "absent.rank")]) is None
