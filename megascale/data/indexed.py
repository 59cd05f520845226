"""Megatron's indexed dataset: tokens in <prefix>.bin, the position of each sequence in <prefix>.idx.

Layout of the index, little endian:

     0  magic "MMIDIDX\\0\\0"
     9  u64 version = 1
    17  u8  code of the token type
    18  u64 sequences, 26  u64 document borders = documents + 1
    34  int32 length of each sequence in tokens
        int64 offset of each sequence in the .bin in bytes
        int64 document borders: index of the first sequence of each document, then the number of sequences
"""

from __future__ import annotations

import itertools
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megascale.errors import DataError

_MAGIC: Final = b"MMIDIDX\x00\x00"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<9sQBQQ")
_DTYPES: Final = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_CODES: Final = {np.dtype(name): code for code, name in _DTYPES.items()}
_CHECKED_AT_ONCE: Final = 1 << 20
_MAX_SEQUENCE_TOKENS: Final = 2**31 - 1


def bin_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.bin")


def idx_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.idx")


class IndexedWriter:
    """Writes a token file and its index. The caller passes temporary paths and renames them after `close`.

    Usage: `append` pieces of a document, then `end_document`; `close` makes both files durable.
    """

    def __init__(self, tokens: Path, index: Path, dtype: np.dtype[np.integer]) -> None:
        self._dtype = dtype
        self._index_path = index
        self._stream: BinaryIO = tokens.open("wb")
        self._lengths: list[int] = []
        self._borders: list[int] = [0]
        self._open_length = 0

    def append(self, tokens: NDArray[np.integer]) -> None:
        """Add tokens to the open document; a sequence whose length would exceed int32 is ended before."""
        if self._open_length + len(tokens) > _MAX_SEQUENCE_TOKENS:
            self._end_sequence()
        self._stream.write(np.ascontiguousarray(tokens, dtype=self._dtype).data)
        self._open_length += len(tokens)

    def end_document(self) -> None:
        """Close the open document."""
        self._end_sequence()
        self._borders.append(len(self._lengths))

    def close(self) -> None:
        """Write the index and make both files durable."""
        _sync_and_close(self._stream)
        write_index(self._index_path, self._lengths, self._borders, self._dtype)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stream.close()

    def _end_sequence(self) -> None:
        self._lengths.append(self._open_length)
        self._open_length = 0


def write_index(path: Path, lengths: ArrayLike, borders: ArrayLike, dtype: np.dtype[np.integer]) -> None:
    """Write the index of consecutive sequences; durable on return.

    Args:
        lengths: (sequences,), in tokens. borders: (documents + 1,), in sequences.
    """
    lengths = np.asarray(lengths, dtype="<i4")
    borders = np.asarray(borders, dtype="<i8")
    sizes = lengths.astype("<i8") * dtype.itemsize
    with path.open("wb") as stream:
        stream.write(_HEADER.pack(_MAGIC, _VERSION, _CODES[dtype], len(lengths), len(borders)))
        for part in (lengths, np.cumsum(sizes) - sizes, borders):
            stream.write(part.data)
        _sync_and_close(stream)


@dataclass(frozen=True, slots=True)
class IndexedTokens:
    """A token file and its index, both memory-mapped and checked when opened.

    Attributes:
        tokens: every token of the file in order, (tokens,).
        lengths: int32 (sequences,), in tokens.
        pointers: int64 (sequences,), in bytes.
        borders: int64 (documents + 1,), in sequences.
    """

    prefix: Path
    tokens: NDArray[np.integer]
    lengths: NDArray[np.int32]
    pointers: NDArray[np.int64]
    borders: NDArray[np.int64]

    @classmethod
    def open(cls, prefix: Path) -> IndexedTokens:
        """Map `<prefix>.bin` and `<prefix>.idx`.

        Raises:
            DataError: a file is missing, damaged or truncated; names file and offset.
        """
        index, tokens = idx_path(prefix), bin_path(prefix)
        for path in (tokens, index):
            if not path.is_file():
                raise DataError(_missing(path, prefix))
        content: NDArray[np.uint8] = _map(index, np.dtype("u1"))
        dtype, sequences, borders = _read_header(index, content)
        at = list(itertools.accumulate((_HEADER.size, 4 * sequences, 8 * sequences, 8 * borders)))
        if len(content) < at[3]:
            raise DataError(
                f"{index}: ends at offset {len(content)}, but its header (offset 18) announces {sequences}"
                f" sequences and {borders} document borders, which take {at[3]} bytes: cut short or damaged;"
                f" {_again(prefix)}"
            )
        self = cls(
            prefix,
            _map_tokens(tokens, dtype),
            content[at[0] : at[1]].view("<i4"),
            content[at[1] : at[2]].view("<i8"),
            content[at[2] : at[3]].view("<i8"),
        )
        self._check_sequences()
        self._check_borders()
        return self

    def document_starts(self) -> NDArray[np.int64]:
        """Byte offset of each document in the .bin, (documents,), ascending, empty documents included.

        If every document is one sequence, as is usual, this is the mapped index and takes no memory.
        """
        first = range(0, len(self.borders), _CHECKED_AT_ONCE)
        if len(self.borders) == len(self.lengths) + 1 and all(
            np.array_equal(part, np.arange(at, at + len(part)))
            for at in first
            for part in [self.borders[at : at + _CHECKED_AT_ONCE]]
        ):
            return self.pointers
        ends = np.concatenate((self.pointers, [self.tokens.nbytes]))
        starts: NDArray[np.int64] = ends[self.borders[:-1]]
        return starts

    def sequence(self, index: int) -> NDArray[np.integer]:
        """A view of the tokens of one sequence."""
        start = int(self.pointers[index]) // self.tokens.itemsize
        return self.tokens[start : start + int(self.lengths[index])]

    def _check_sequences(self) -> None:
        """Check that sequences are consecutive and fill the token file exactly."""
        index, size, start = idx_path(self.prefix), self.tokens.itemsize, 0
        for first in range(0, len(self.lengths), _CHECKED_AT_ONCE):
            lengths = self.lengths[first : first + _CHECKED_AT_ONCE].astype(np.int64)
            pointers = self.pointers[first : first + _CHECKED_AT_ONCE]
            if (bad := _first(lengths < 0)) is not None:
                at = _HEADER.size + 4 * (first + bad)
                raise DataError(f"{index}: offset {at}: sequence {first + bad} has length {lengths[bad]}")
            ends = start + np.cumsum(lengths) * size
            starts = np.concatenate(([start], ends[:-1]))
            if (bad := _first(pointers != starts)) is not None:
                at = _HEADER.size + 4 * len(self.lengths) + 8 * (first + bad)
                raise DataError(
                    f"{index}: offset {at}: sequence {first + bad} starts at byte {pointers[bad]},"
                    f" expected {starts[bad]}, where the one before it ends"
                )
            start = int(ends[-1])
        self._check_token_bytes(start)

    def _check_token_bytes(self, announced: int) -> None:
        tokens, index = bin_path(self.prefix), idx_path(self.prefix)
        present = tokens.stat().st_size
        if present == announced:
            return
        what = "is cut short: it ends" if present < announced else "ends"
        raise DataError(
            f"{tokens}: {what} at offset {present}, but {index.name} places sequences up to offset"
            f" {announced}; {_again(self.prefix)}"
        )

    def _check_borders(self) -> None:
        index, at = idx_path(self.prefix), _HEADER.size + 12 * len(self.lengths)
        if len(self.borders) == 0 or self.borders[0] != 0:
            raise DataError(f"{index}: offset {at}: the first document does not start at sequence 0")
        if (bad := _first(np.diff(self.borders) < 0)) is not None:
            raise DataError(f"{index}: offset {at + 8 * (bad + 1)}: document {bad} ends before it starts")
        if self.borders[-1] != len(self.lengths):
            last = at + 8 * (len(self.borders) - 1)
            ends = f"documents end at sequence {self.borders[-1]}, expected {len(self.lengths)}"
            raise DataError(f"{index}: offset {last}: {ends}")


def token_count(prefix: Path) -> int:
    """Number of tokens in `<prefix>.bin`, from its size and the header of the index only.

    Raises:
        DataError: a file is missing, or the index has no valid header.
    """
    index, tokens = idx_path(prefix), bin_path(prefix)
    for path in (tokens, index):
        if not path.is_file():
            raise DataError(_missing(path, prefix))
    with index.open("rb") as stream:
        head = np.frombuffer(stream.read(_HEADER.size), dtype=np.uint8)
    dtype, _, _ = _read_header(index, head)
    return tokens.stat().st_size // dtype.itemsize


def _read_header(index: Path, content: NDArray[np.uint8]) -> tuple[np.dtype[np.integer], int, int]:
    """The token type and the numbers of sequences and document borders."""
    if len(content) < _HEADER.size:
        raise DataError(f"{index}: ends at offset {len(content)}, within the header of {_HEADER.size} bytes")
    magic, version, code, sequences, borders = _HEADER.unpack(content[: _HEADER.size].tobytes())
    if magic != _MAGIC:
        raise DataError(f"{index}: offset 0: starts with {magic!r}, expected {_MAGIC!r}: no Megatron index")
    if version != _VERSION:
        raise DataError(f"{index}: offset 9: version {version}, expected {_VERSION}")
    if code not in _DTYPES:
        known = ", ".join(f"{known} ({np.dtype(name).name})" for known, name in _DTYPES.items())
        raise DataError(f"{index}: offset 17: token type {code}, expected one of {known}")
    return np.dtype(_DTYPES[code]), sequences, borders


def _map(path: Path, dtype: np.dtype[np.uint8]) -> NDArray[np.uint8]:
    """Map the whole file; an empty one cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _map_tokens(path: Path, dtype: np.dtype[np.integer]) -> NDArray[np.integer]:
    """Map the file's complete tokens; a remainder is found when sizes are compared."""
    count = path.stat().st_size // dtype.itemsize
    return np.memmap(path, dtype=dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype)


def _first(flags: NDArray[np.bool_]) -> int | None:
    """Index of the first True."""
    return int(flags.argmax()) if flags.any() else None


def _missing(path: Path, prefix: Path) -> str:
    return f"{path}: no such file; make it with `megascale data prepare PATHS... --output {prefix}`"


def _again(prefix: Path) -> str:
    return f"make it again with `megascale data prepare PATHS... --output {prefix} --force`"


def _sync_and_close(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()
