"""Segment times of real ranks: where the time goes, and who keeps whom waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_jobs import LAYOUTS, Job

from megascale.observe.segments import SEGMENTS, SegmentReader, StepSegments, segments_path

pytestmark = pytest.mark.multiprocess
STEPS = 6


def segments_of(job: Job, rank: int) -> list[StepSegments]:
    return SegmentReader(segments_path(job.folder / "ranks" / str(rank))).read()


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("dp2", {"forward", "backward", "allreduce", "data", "optimizer"}),
        ("tp2-sequence", {"forward", "backward", "allreduce", "data", "optimizer"}),
        ("pp2", set(SEGMENTS)),
        ("pp2-interleaved", set(SEGMENTS)),
    ],
)
def test_every_rank_tells_where_each_step_went(
    layout: str, expected: set[str], new_job: Any, spec: Any
) -> None:
    world, parallelism, _ = LAYOUTS[layout]
    job = new_job()
    job.complete(spec(world, steps=STEPS, parallelism=parallelism), world)
    seen: set[str] = set()
    for rank in range(world):
        found = segments_of(job, rank)
        assert [step.step for step in found] == list(range(1, STEPS + 1))
        seen |= {name for step in found for name, seconds in step.seconds.items() if seconds > 0}
        assert all(step.compute_s > 0 for step in found)
        # Parts do not overlap, and little of a step is outside of them.
        last = job.record_of(rank)
        total = sum(found[-1].seconds.values())
        assert 0.5 * last.step_seconds < total <= last.step_seconds
    assert seen == expected


@pytest.mark.parametrize(
    ("layout", "waits"), [("dp2", "allreduce"), ("pp2", "recv"), ("pp2-interleaved", "recv")]
)
def test_a_slow_rank_shows_in_its_own_times_and_its_peer_waits(
    layout: str, waits: str, new_job: Any, spec: Any
) -> None:
    world, parallelism, _ = LAYOUTS[layout]
    job = new_job()
    few = {"globalBatch": 2}
    job.complete(spec(world, steps=STEPS, parallelism=parallelism, data=few), world, slow=0)
    slow, sound = ([step.seconds for step in segments_of(job, rank)] for rank in (0, 1))
    # One micro-batch through four layers, or two through two, 0.1 s longer each.
    excess = 0.4
    assert min(step["forward"] for step in slow) > excess
    assert min(step["forward"] for step in sound) < excess
    assert max(step[waits] for step in sound) > excess / 2


def test_a_new_launch_has_a_ring_of_its_own(new_job: Any, spec: Any) -> None:
    from megascale.core.contract.lineage import Commit

    job = new_job()
    job.attempt(spec(2, faults=[{"kind": "killRank", "rank": 1, "step": 4}]), 2)
    path: Path = segments_path(job.folder / "ranks" / "1")
    reader = SegmentReader(path)
    assert [step.step for step in reader.read()] == [1, 2, 3]
    job.complete(spec(2), 2, resume=Commit(step=2, attempt=1))
    assert [step.step for step in reader.read()] == [3, 4, 5]
    assert reader.attempt == 2
