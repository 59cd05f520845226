"""The rank record: one memory-mapped file per rank, written by the rank, read by its agent.

The agent reads it without the rank's help, so it also works when the rank is stopped or holds the
interpreter lock. A seqlock (odd while a write is under way) keeps a reader from seeing half a record.

Layout, little endian, 16 KiB:

      0  magic "MSRANK01"
      8  request, written by the agent: u8 what is asked for (`Control`), at 12 u32 the number of requests
     64  sequence number, then the record (`_RECORD`)
   4096  exit report: u32 length, then JSON, written once before the rank exits
"""

from __future__ import annotations

import enum
import json
import mmap
import os
import struct
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

MAGIC: Final = b"MSRANK01"
FILE_BYTES: Final = 16384
LAST_WORDS_BYTES: Final = 8192
_CONTROL_AT: Final = 8
_REQUESTS_AT: Final = 12
_SEQUENCE_AT: Final = 64
_RECORD_AT: Final = 72
_LAST_WORDS_AT: Final = 4096
_COLLECTIVE_BYTES: Final = 48
_RECORD: Final = struct.Struct(f"<6q2d5q9d{_COLLECTIVE_BYTES}s2qd")
_READ_TRIES: Final = 64


class Phase(enum.IntEnum):
    """What a rank is doing. Each phase has its own time bound in hang detection."""

    STARTUP = 0
    COMPILE = 1
    DATA = 2
    FORWARD = 3
    BACKWARD = 4
    OPTIMIZER = 5
    CHECKPOINT = 6
    EVALUATION = 7
    IDLE = 8
    SAVING_AGAIN = 9


class Control(enum.IntEnum):
    """What the agent asks of a rank; all ranks act on it after the same step."""

    NONE = 0
    SAVE = 1
    SAVE_AND_EXIT = 2


@dataclass(frozen=True, slots=True)
class RankRecord:
    """A consistent reading of one rank file. Times are CLOCK_MONOTONIC seconds, 0.0 = not yet.

    Attributes:
        term, attempt: fencing token of the launch that owns the file.
        pid: process id of the rank.
        step: last completed optimizer step of the job (1-based), 0 before the first.
        phase: `Phase` value.
        micro_batch: micro-batch under way, counted from 0 within the step.
        loss, grad_norm: of `step`; NaN where this rank does not know them.
        tokens: tokens consumed by the whole job up to `step`.
        saved_step, saved_attempt: newest commit this rank took part in, -1 = none.
        collectives: number of collectives entered so far (0 where not counted).
        updated_at: last write; progress_at: completion of `step`.
        groups_at, loaded_at, first_step_at: milestones of this launch.
        step_seconds: duration of `step`; stall_seconds: time blocked by saves, summed over this launch.
        snapshot_step, snapshot_attempt: newest snapshot in memory, -1 = none in this launch.
        snapshot_seconds: the part of stall_seconds that snapshots took.
        flops: floating-point operations per second of this rank during `step`.
        peak_flops: measured or rated peak of this rank's device, 0.0 = unknown.
        collective: name of the collective entered last.
    """

    term: int = 0
    attempt: int = 0
    rank: int = 0
    pid: int = 0
    step: int = 0
    tokens: int = 0
    loss: float = float("nan")
    grad_norm: float = float("nan")
    phase: int = int(Phase.STARTUP)
    micro_batch: int = 0
    saved_step: int = -1
    saved_attempt: int = -1
    collectives: int = 0
    updated_at: float = 0.0
    progress_at: float = 0.0
    groups_at: float = 0.0
    loaded_at: float = 0.0
    first_step_at: float = 0.0
    step_seconds: float = 0.0
    stall_seconds: float = 0.0
    flops: float = 0.0
    peak_flops: float = 0.0
    collective: str = ""
    snapshot_step: int = -1
    snapshot_attempt: int = -1
    snapshot_seconds: float = 0.0


_FIELDS: Final = tuple(field.name for field in fields(RankRecord))
_COLLECTIVE: Final = _FIELDS.index("collective")


class RankFile:
    """One end of a rank file. The rank calls `update` and `write_exit_report`; the agent sets `control`."""

    def __init__(self, path: Path, memory: mmap.mmap) -> None:
        self.path = path
        self._memory = memory
        self._record = self.read() if memory[_SEQUENCE_AT:_RECORD_AT] != bytes(8) else RankRecord()

    @classmethod
    def create(cls, path: Path, record: RankRecord) -> RankFile:
        """Write a fresh file holding `record`; an older one at `path` is replaced in one rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(MAGIC + bytes(FILE_BYTES - len(MAGIC)))
        temporary.replace(path)
        rank_file = cls.open(path)
        rank_file.publish(record)
        return rank_file

    @classmethod
    def open(cls, path: Path) -> RankFile:
        """Map an existing file.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not a rank file.
        """
        with path.open("r+b") as handle:
            memory = mmap.mmap(handle.fileno(), FILE_BYTES)
        if memory[: len(MAGIC)] != MAGIC:
            raise ValueError(f"{path} is not a rank file")
        return cls(path, memory)

    def update(self, **changes: Any) -> None:  # noqa: ANN401 - names and types are RankRecord's
        """Publish the record with `changes` applied (about 3 us)."""
        self.publish(replace(self._record, **changes))

    def publish(self, record: RankRecord) -> None:
        """Replace the whole record."""
        self._record = record
        values = [getattr(record, name) for name in _FIELDS]
        values[_COLLECTIVE] = record.collective.encode()[:_COLLECTIVE_BYTES]
        sequence = int.from_bytes(self._memory[_SEQUENCE_AT:_RECORD_AT], "little") | 1
        self._memory[_SEQUENCE_AT:_RECORD_AT] = sequence.to_bytes(8, "little")
        _RECORD.pack_into(self._memory, _RECORD_AT, *values)
        self._memory[_SEQUENCE_AT:_RECORD_AT] = (sequence + 1).to_bytes(8, "little")

    def read(self) -> RankRecord:
        """A consistent record; the last one seen when the writer died half-way through a write."""
        for _ in range(_READ_TRIES):
            before = self._memory[_SEQUENCE_AT:_RECORD_AT]
            values = _RECORD.unpack_from(self._memory, _RECORD_AT)
            if before[0] % 2 == 0 and before == self._memory[_SEQUENCE_AT:_RECORD_AT]:
                self._record = _unpacked(values)
                break
        return self._record

    @property
    def control(self) -> Control:
        """What the agent asked for last. Setting it makes a new request, also with the same value."""
        return Control(self._memory[_CONTROL_AT])

    @control.setter
    def control(self, value: Control) -> None:
        # The number last: a rank that sees the new one also sees what is asked for.
        self._memory[_CONTROL_AT] = int(value)
        requests = (self.requests + 1) % (1 << 32)
        self._memory[_REQUESTS_AT : _REQUESTS_AT + 4] = requests.to_bytes(4, "little")

    @property
    def requests(self) -> int:
        """How many requests the agent has made."""
        return int.from_bytes(self._memory[_REQUESTS_AT : _REQUESTS_AT + 4], "little")

    def write_exit_report(self, report: dict[str, Any]) -> None:
        """Write why the rank exits; what does not fit is cut from `message`."""
        raw = json.dumps(report).encode()
        if len(raw) > LAST_WORDS_BYTES - 4:
            report = {**report, "message": str(report.get("message", ""))[:1000]}
            raw = json.dumps({k: report[k] for k in ("type", "message") if k in report}).encode()
        self._memory[_LAST_WORDS_AT : _LAST_WORDS_AT + 4 + len(raw)] = len(raw).to_bytes(4, "little") + raw

    def read_exit_report(self) -> dict[str, Any] | None:
        """What `write_exit_report` left, or None."""
        length = int.from_bytes(self._memory[_LAST_WORDS_AT : _LAST_WORDS_AT + 4], "little")
        if not 0 < length <= LAST_WORDS_BYTES - 4:
            return None
        raw = self._memory[_LAST_WORDS_AT + 4 : _LAST_WORDS_AT + 4 + length]
        try:
            report = json.loads(raw)
        except ValueError:
            return None
        return report if isinstance(report, dict) else None

    def close(self) -> None:
        self._memory.close()


def _unpacked(values: tuple[Any, ...]) -> RankRecord:
    named = dict(zip(_FIELDS, values, strict=True))
    return RankRecord(**named | {"collective": named["collective"].rstrip(b"\0").decode(errors="replace")})
