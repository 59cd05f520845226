"""How long the ranks of this node computed in each step, on its way to the driver."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from megascale.observe.segments import SegmentReader, StepSegments, segments_path
from megascale.rpc import megascale_pb2 as pb

PERIOD_S: Final = 1.0
"""Shortest time between two batches."""
_STEPS: Final = 64


class SegmentFeed:
    """Reads the rings of the ranks; one batch holds at most 64 steps of each, the newest."""

    def __init__(self) -> None:
        self._readers: dict[Path, SegmentReader] = {}

    def batch(self, attempt: int, ranks: Iterable[tuple[int, Path]]) -> pb.SegmentTimes | None:
        """What is new of `attempt`, None if nothing is.

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
    """Steps follow each other; what came before a gap is left out."""
    first = len(entries) - 1
    while first > 0 and entries[first - 1].step == entries[first].step - 1:
        first -= 1
    kept = entries[first:]
    return pb.RankSegments(rank=rank, first_step=kept[0].step, compute_s=[entry.compute_s for entry in kept])
