"""The ring of segment times between a rank and its agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megascale.core.stats import trace
from megascale.observe.segments import (
    CAPACITY,
    FILE_BYTES,
    SEGMENTS,
    SegmentReader,
    SegmentRing,
    segments_path,
)


def ring_at(path: Path, attempt: int = 1) -> SegmentRing:
    return SegmentRing.create(path, term=3, attempt=attempt, rank=0)


def test_segments_are_those_that_the_detectors_know() -> None:
    assert SEGMENTS == trace.SEGMENTS


def test_the_reader_sees_each_step_once_with_all_segments(tmp_path: Path) -> None:
    path = segments_path(tmp_path / "rank-0")
    reader = SegmentReader(path)
    assert reader.read() == []
    ring = ring_at(path, attempt=2)
    ring.append(7, {"forward": 0.25, "backward": 0.5, "allreduce": 0.125})
    ring.append(8, {"data": 1.0})
    first, second = reader.read()
    assert (first.step, first.compute_s, first.seconds["allreduce"]) == (7, 0.75, 0.125)
    assert set(first.seconds) == set(SEGMENTS)
    assert (second.step, second.compute_s, second.seconds["data"]) == (8, 0.0, 1.0)
    assert (reader.term, reader.attempt) == (3, 2)
    assert reader.read() == []


def test_a_late_reader_gets_the_newest_and_never_a_mixed_entry(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring, reader = ring_at(path), SegmentReader(path)
    for step in range(1, 3 * CAPACITY + 1):
        ring.append(step, {"forward": float(step)})
    found = reader.read()
    # The place after the newest may be under the writer's pen: it is not handed out.
    assert [entry.step for entry in found] == list(range(2 * CAPACITY + 2, 3 * CAPACITY + 1))
    assert all(entry.seconds["forward"] == entry.step for entry in found)
    assert path.stat().st_size == FILE_BYTES


def test_the_reader_follows_a_rank_that_is_launched_again(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    old, reader = ring_at(path, attempt=1), SegmentReader(path)
    old.append(1, {})
    assert len(reader.read()) == 1
    new = ring_at(path, attempt=2)
    old.append(2, {})  # a zombie's entries go to a file that has no name any more
    new.append(1, {})
    assert [entry.step for entry in reader.read()] == [1]
    assert reader.attempt == 2


def test_a_writer_in_another_process_is_read_while_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    ring_at(path).close()
    reader, steps = SegmentReader(path), 20_000
    reader.read()
    pid = os.fork()
    if pid == 0:
        ring = ring_at(path, attempt=2)
        for step in range(1, steps + 1):
            ring.append(step, dict.fromkeys(SEGMENTS, float(step)))
        os._exit(0)
    last = 0
    while last < steps:
        for entry in reader.read():
            assert entry.step > last
            assert set(entry.seconds.values()) == {float(entry.step)}
            last = entry.step
    assert os.waitpid(pid, 0)[1] == 0


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ring"
    path.write_bytes(bytes(FILE_BYTES))
    with pytest.raises(ValueError, match="not a ring"):
        SegmentReader(path).read()
