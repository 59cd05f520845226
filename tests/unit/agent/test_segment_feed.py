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


def test_every_rank_has_its_own_steps_and_each_is_sent_once(tmp_path: Path) -> None:
    files = [(rank, tmp_path / f"n-{rank}.rank") for rank in (2, 3)]
    rings = [SegmentRing.create(segments_path(file), term=1, attempt=4, rank=rank) for rank, file in files]
    feed = SegmentFeed()
    for step, seconds in ((1, (0.5, 0.25)), (2, (0.75, 0.125))):
        for ring, compute_s in zip(rings, seconds, strict=True):
            ring.append(step, {"forward": compute_s})
        found = feed.batch(4, files)
        assert found == pb.SegmentTimes(
            attempt=4,
            ranks=[
                pb.RankSegments(rank=rank, first_step=step, compute_s=[compute_s])
                for (rank, _), compute_s in zip(files, seconds, strict=True)
            ],
        )
        assert feed.batch(4, files) is None


def test_steps_of_another_attempt_are_left_out(tmp_path: Path) -> None:
    old, new = tmp_path / "n-0.rank", tmp_path / "n-1.rank"
    for path, attempt in ((old, 4), (new, 5)):
        SegmentRing.create(segments_path(path), term=1, attempt=attempt, rank=0).append(7, {"forward": 1.0})
    found = SegmentFeed().batch(5, [(0, old), (1, new)])
    assert found == pb.SegmentTimes(attempt=5, ranks=[pb.RankSegments(rank=1, first_step=7, compute_s=[1.0])])
