"""Collects the compute times per step of this node's ranks, in batches for the driver."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from megascale.observe.segments import SegmentReader, StepSegments, segments_path
from megascale.rpc import megascale_pb2 as pb

PERIOD_S: Final = 1.0
"""Shortest time between two batches, in seconds."""
_STEPS: Final = 64


class SegmentFeed:
    """Reads the segment ring buffers of the ranks; a batch has at most the newest 64 steps of each rank."""

    def __init__(self) -> None:
        self._readers: dict[Path, SegmentReader] = {}

    def batch(self, attempt: int, ranks: Iterable[tuple[int, Path]]) -> pb.SegmentTimes | None:
        """Return the compute times of `attempt` since the last call, None if there are none.

        Args:
            ranks: number and rank record of each rank.
        """
        found: list[pb.RankSegments] = []
        for rank, rank_file in ranks:
            reader = self._readers.setdefault(rank_file, SegmentReader(segments_path(rank_file)))
            entries = reader.read()
            if entries and reader.attempt == attempt:
                found.append(_times(rank, entries[-_STEPS:]))
        return pb.SegmentTimes(attempt=attempt, ranks=found) if found else None


def _times(rank: int, entries: list[StepSegments]) -> pb.RankSegments:
    """Convert to a message, whose steps must be consecutive; steps before the last gap are left out."""
    first = len(entries) - 1
    while first > 0 and entries[first - 1].step == entries[first].step - 1:
        first -= 1
    kept = entries[first:]
    return pb.RankSegments(rank=rank, first_step=kept[0].step, compute_s=[entry.compute_s for entry in kept])
