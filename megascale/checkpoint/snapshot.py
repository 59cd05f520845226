"""Snapshot files: a rank's state in a memory-mapped file that outlives the rank.

Two buffers are written in turn, so that one complete snapshot exists while the next is copied. Each has a
seqlock (odd while a copy is under way) and checksums, so that the partial copy of a killed rank is never
used. Values are in native byte order, because the file never leaves its machine.

        0  magic "MSSNAP01", u32 length and u32 CRC-32 of what follows: the layout as JSON
     4096  slot 0: sequence number, then `_SLOT`; 8192 slot 1
    12288  buffer 0: tensor bytes padded to whole pages, then 256 KiB for the state as JSON; buffer 1 follows

Importing this module imports neither torch nor numpy: agents read the slots of ranks that have died.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from megascale.core.contract.lineage import Commit

MAGIC: Final = b"MSSNAP01"
BUFFERS: Final = 2
STATE_BYTES: Final = 256 << 10
_PAGE: Final = 4096
_HEAD: Final = struct.Struct("<8sII")
_SEQUENCE: Final = struct.Struct("<Q")
_SLOT: Final = struct.Struct("<4Q2I")
_SLOT_CRC: Final = struct.Struct("<I")
_DATA_AT: Final = (1 + BUFFERS) * _PAGE


@dataclass(frozen=True, slots=True)
class SnapshotLayout:
    """The state that a snapshot file was made for; a rank uses only files of an equal layout.

    Attributes:
        pieces: digest of the names, boxes and types of the rank's pieces, in order.
        data_bytes: size of the tensors in one buffer.
    """

    job: str
    rank: int
    world_size: int
    pieces: str
    data_bytes: int

    @property
    def padded_bytes(self) -> int:
        return -(-self.data_bytes // _PAGE) * _PAGE

    @property
    def buffer_bytes(self) -> int:
        return self.padded_bytes + STATE_BYTES

    @property
    def file_bytes(self) -> int:
        return _DATA_AT + BUFFERS * self.buffer_bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A complete snapshot: the state after `step`, copied in `attempt` of driver term `term`."""

    index: int
    term: int
    attempt: int
    step: int
    state_bytes: int
    data_crc: int
    state_crc: int

    @property
    def commit(self) -> Commit:
        return Commit(self.step, self.attempt)


class SnapshotFile:
    """A snapshot file opened by its rank for writing; one copy at a time, between `begin` and `finish`."""

    def __init__(self, path: Path, layout: SnapshotLayout, memory: mmap.mmap) -> None:
        self.path, self.layout = path, layout
        self._memory = memory
        self._view = memoryview(memory)

    @classmethod
    def adopt(cls, path: Path, layout: SnapshotLayout) -> Self | None:
        """Open the file at `path` and keep its snapshots; None if there is none of this layout."""
        return cls._map(path, layout) if _layout_of(path) == layout else None

    @classmethod
    def create(cls, path: Path, layout: SnapshotLayout) -> Self:
        """Create a file at `path` with all pages allocated, replacing an existing one.

        Raises:
            OSError: the file system is full or returns another error.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        body = json.dumps(asdict(layout)).encode()
        try:
            with temporary.open("xb") as handle:
                # A later write to an unallocated page of a full tmpfs would be a SIGBUS.
                os.posix_fallocate(handle.fileno(), 0, layout.file_bytes)
                handle.write(_HEAD.pack(MAGIC, len(body), zlib.crc32(body)) + body)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return cls._map(path, layout)

    @classmethod
    def _map(cls, path: Path, layout: SnapshotLayout) -> Self:
        with path.open("r+b") as handle:
            return cls(path, layout, mmap.mmap(handle.fileno(), layout.file_bytes))

    def snapshots(self) -> list[Snapshot]:
        """The complete snapshots, oldest first."""
        slots = (_parse_slot(index, self._view[_slot_at(index) :]) for index in range(BUFFERS))
        return sorted((slot for slot in slots if slot), key=lambda slot: (slot.attempt, slot.step))

    def data(self, index: int) -> memoryview:
        """The tensor bytes of a buffer, padded with zeros to whole pages."""
        at = self._buffer_at(index)
        return self._view[at : at + self.layout.padded_bytes]

    def state(self, snapshot: Snapshot) -> Any:  # noqa: ANN401 - JSON values
        """The JSON document of a snapshot; call `damage` first."""
        at = self._buffer_at(snapshot.index) + self.layout.padded_bytes
        return json.loads(bytes(self._view[at : at + snapshot.state_bytes]))

    def begin(self, index: int) -> None:
        """Invalidate the snapshot in a buffer before it is overwritten."""
        at = _slot_at(index)
        (sequence,) = _SEQUENCE.unpack_from(self._view, at)
        _SEQUENCE.pack_into(self._view, at, sequence | 1)

    def finish(self, index: int, *, term: int, attempt: int, step: int, state: bytes) -> None:
        """Complete the snapshot whose tensor bytes have been written to the buffer.

        Raises:
            ValueError: `state` is longer than 256 KiB.
        """
        if len(state) > STATE_BYTES:
            raise ValueError(f"the state of a rank is {len(state)} bytes of JSON, at most {STATE_BYTES} fit")
        at = self._buffer_at(index) + self.layout.padded_bytes
        self._view[at : at + len(state)] = state
        crcs = (folded_crc(self.data(index)), zlib.crc32(state))
        slot = _SLOT.pack(term, attempt, step, len(state), *crcs)
        at = _slot_at(index)
        (sequence,) = _SEQUENCE.unpack_from(self._view, at)
        body = at + _SEQUENCE.size
        self._view[body : body + len(slot)] = slot
        _SLOT_CRC.pack_into(self._view, body + len(slot), zlib.crc32(slot))
        _SEQUENCE.pack_into(self._view, at, (sequence | 1) + 1)

    def damage(self, snapshot: Snapshot) -> str:
        """Describes the part of a snapshot that does not match its checksum; "" = all of it does."""
        found = folded_crc(self.data(snapshot.index))
        if found != snapshot.data_crc:
            return f"tensors: checksum is {found:08x}, {snapshot.data_crc:08x} was written"
        return self.state_damage(snapshot)

    def state_damage(self, snapshot: Snapshot) -> str:
        """As `damage`, of the JSON document only."""
        at = self._buffer_at(snapshot.index) + self.layout.padded_bytes
        found = zlib.crc32(self._view[at : at + snapshot.state_bytes])
        if found != snapshot.state_crc:
            return f"state: CRC-32 is {found:08x}, {snapshot.state_crc:08x} was written"
        return ""

    def _buffer_at(self, index: int) -> int:
        return _DATA_AT + index * self.layout.buffer_bytes


def folded_crc(data: memoryview) -> int:
    """CRC-32 of the sums of the columns of `data`, seen as rows of 512 64-bit integers (mod 2^64).

    It detects any wrong word and any block that was not written, several times faster than a CRC of all
    bytes. It does not detect pages that have changed places.
    """
    import numpy as np

    return zlib.crc32(np.frombuffer(data, dtype=np.uint64).reshape(-1, _PAGE // 8).sum(axis=0).data)


def held(files: Sequence[Path]) -> list[Commit]:
    """The commits of which every file has a complete snapshot, oldest first; [] if one file has none.

    Only headers are read; a restore compares the checksums.
    """
    found = [{snapshot.commit for snapshot in _read(path)} for path in files]
    return sorted(set.intersection(*found), key=lambda c: (c.attempt, c.step)) if found else []


def stored_state(path: Path, commit: Commit) -> Any:  # noqa: ANN401 - JSON values
    """The JSON document of the snapshot of `commit` in a file; None if there is no such whole document."""
    layout = _layout_of(path)
    if layout is None:
        return None
    file = SnapshotFile._map(path, layout)  # noqa: SLF001 - of the class above
    found = next((snapshot for snapshot in file.snapshots() if snapshot.commit == commit), None)
    return file.state(found) if found is not None and not file.state_damage(found) else None


def _read(path: Path) -> list[Snapshot]:
    if _layout_of(path) is None:
        return []
    with path.open("rb") as handle:
        head = handle.read(_DATA_AT)
    slots = (_parse_slot(index, head[_slot_at(index) :]) for index in range(BUFFERS))
    return [slot for slot in slots if slot]


def _slot_at(index: int) -> int:
    return (1 + index) * _PAGE


def _parse_slot(index: int, raw: bytes | memoryview) -> Snapshot | None:
    (sequence,) = _SEQUENCE.unpack_from(raw)
    body = bytes(raw[_SEQUENCE.size : _SEQUENCE.size + _SLOT.size])
    (crc,) = _SLOT_CRC.unpack_from(raw, _SEQUENCE.size + _SLOT.size)
    if sequence == 0 or sequence % 2 or crc != zlib.crc32(body):
        return None
    return Snapshot(index, *_SLOT.unpack(body))


def _layout_of(path: Path) -> SnapshotLayout | None:
    """The layout in the header of a file; None if it is not a complete snapshot file."""
    try:
        with path.open("rb") as handle:
            head = handle.read(_PAGE)
            magic, length, crc = _HEAD.unpack_from(head)
            body = head[_HEAD.size : _HEAD.size + length]
            if magic != MAGIC or zlib.crc32(body) != crc:
                return None
            layout = SnapshotLayout(**json.loads(body))
            return layout if os.fstat(handle.fileno()).st_size == layout.file_bytes else None
    except (FileNotFoundError, NotADirectoryError, struct.error, ValueError, TypeError):
        return None
