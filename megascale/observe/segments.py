"""How long a rank spent in each part of its steps: a ring file beside its rank record, for the agent to read.

The rank appends one entry per step; the agent reads new entries from time to time. Neither waits for the
other: a reader that is more than `CAPACITY` steps late misses the oldest ones, and sees that in the numbers.

Layout, little endian:

      0  magic "MSSEGM01"
      8  u64 term, u64 attempt, u64 rank
     32  u64 number of entries ever written
     64  `CAPACITY` entries: u64 step, then seconds of each of `SEGMENTS` as f32

Entry n lies at place n modulo `CAPACITY`; the count is raised once an entry is whole.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAGIC: Final = b"MSSEGM01"
CAPACITY: Final = 1024
SEGMENTS: Final = ("forward", "backward", "allreduce", "send", "recv", "data", "optimizer")
"""The names that `megascale.core.stats.trace` knows; repeated, since that imports numpy."""
_HEADER: Final = struct.Struct("<8s4Q")
_COUNT: Final = struct.Struct("<Q")
_COUNT_AT: Final = 32
_ENTRIES_AT: Final = 64
_ENTRY: Final = struct.Struct(f"<Q{len(SEGMENTS)}f")
FILE_BYTES: Final = _ENTRIES_AT + CAPACITY * _ENTRY.size


@dataclass(frozen=True, slots=True)
class StepSegments:
    """One step of one rank.

    Attributes:
        step: number of the optimizer step, 1-based.
        seconds: seconds by segment name, every one of `SEGMENTS`. They do not overlap: what a rank waits for
            others within its forward pass is in "recv" or "allreduce", not in "forward".
    """

    step: int
    seconds: Mapping[str, float]

    @property
    def compute_s(self) -> float:
        """What this rank computed by itself: forward and backward."""
        return self.seconds["forward"] + self.seconds["backward"]


def segments_path(rank_file: Path) -> Path:
    """Where the ring of the rank with this rank record lies."""
    return rank_file.with_name(f"{rank_file.name}.segments")


class SegmentRing:
    """The rank's end."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._count = 0

    @classmethod
    def create(cls, path: Path, *, term: int, attempt: int, rank: int) -> SegmentRing:
        """Make an empty ring; one of an earlier attempt at `path` is replaced in one rename."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        header = _HEADER.pack(MAGIC, term, attempt, rank, 0)
        temporary.write_bytes(header.ljust(FILE_BYTES, b"\0"))
        with temporary.open("r+b") as handle:
            memory = mmap.mmap(handle.fileno(), FILE_BYTES)
        temporary.replace(path)
        return cls(memory)

    def append(self, step: int, seconds: Mapping[str, float]) -> None:
        """Add the entry of `step`; segments that are not named took no time (about 2 us)."""
        at = _ENTRIES_AT + self._count % CAPACITY * _ENTRY.size
        _ENTRY.pack_into(self._memory, at, step, *(seconds.get(name, 0.0) for name in SEGMENTS))
        self._count += 1
        _COUNT.pack_into(self._memory, _COUNT_AT, self._count)

    def close(self) -> None:
        self._memory.close()


class SegmentReader:
    """The agent's end: hands out every entry once, and follows a rank that is launched again to its new ring.

    Attributes:
        term, attempt: of the launch whose entries `read` returned last; 0 before there were any.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory: mmap.mmap | None = None
        self._inode = 0
        self._seen = 0
        self.term = 0
        self.attempt = 0

    def read(self) -> list[StepSegments]:
        """Entries since the last call, oldest first, at most `CAPACITY`; [] while the rank has no ring.

        Raises:
            ValueError: the file is not a ring.
        """
        self._follow()
        if self._memory is None:
            return []
        written = self._written()
        first = max(self._seen, written - CAPACITY)
        raw = [(n, self._entry(n)) for n in range(first, written)]
        # What the rank overwrote meanwhile is not whole; one more entry may be half written.
        oldest = self._written() + 1 - CAPACITY
        self._seen = written
        return [
            StepSegments(step, dict(zip(SEGMENTS, seconds, strict=True)))
            for n, (step, *seconds) in raw
            if n >= oldest
        ]

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _written(self) -> int:
        assert self._memory is not None
        return int(_COUNT.unpack_from(self._memory, _COUNT_AT)[0])

    def _entry(self, number: int) -> tuple[int, ...]:
        assert self._memory is not None
        return _ENTRY.unpack_from(self._memory, _ENTRIES_AT + number % CAPACITY * _ENTRY.size)

    def _follow(self) -> None:
        """Map the file that is at the path now."""
        try:
            inode = self._path.stat().st_ino
            if self._memory is not None and inode == self._inode:
                return
            with self._path.open("rb") as handle:
                memory = mmap.mmap(handle.fileno(), FILE_BYTES, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return
        magic, term, attempt, _rank, _count = _HEADER.unpack_from(memory, 0)
        if magic != MAGIC:
            memory.close()
            raise ValueError(f"{self._path} is not a ring of segment times")
        self.close()
        self._memory, self._inode, self._seen = memory, inode, 0
        self.term, self.attempt = term, attempt
