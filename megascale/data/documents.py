"""Reads documents from text and JSONL files, plain or compressed with gzip or Zstandard.

A text file is one document. Each line of a JSONL file is one document, whose text is under a key.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megascale.errors import DataError

_CHUNK_BYTES: Final = 1 << 22
_COMPRESSED_BYTES: Final = 1 << 16  # at most a thousandfold when decompressed
_MAX_LINE_BYTES: Final = 1 << 30
_JSONL: Final = frozenset({".jsonl", ".ndjson"})
_COMPRESSED: Final = frozenset({".gz", ".zst"})


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, end) of a file, which one worker reads; a compressed file is one span."""

    path: Path
    start: int
    end: int

    @property
    def is_jsonl(self) -> bool:
        return _inner_suffix(self.path) in _JSONL

    @property
    def is_divisible(self) -> bool:
        """Whether a worker can find documents from the middle of the file on."""
        return self.path.suffix in _JSONL


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `pieces` can be iterated once; `problem` is why it cannot be used, "" = it can.

    Attributes:
        line: line of the file that it is; None for the whole file, or where only `offset` is known.
        offset: byte of the file at which its line begins, where `line` is not known.
    """

    path: Path
    pieces: Iterator[bytes]
    problem: str = ""
    line: int | None = None
    offset: int | None = None

    @property
    def where(self) -> str:
        """File and line; lines are counted only for who asks."""
        line = self.line if self.offset is None else _line_at(self.path, self.offset)
        return str(self.path) if line is None else f"{self.path}: line {line}"


def read_documents(span: Span, text_key: str, on_read: Callable[[int], None]) -> Iterator[Document]:
    """Documents that begin within the span.

    Args:
        on_read: called with the number of bytes that were read.

    Raises:
        DataError: a compressed file is truncated or damaged; names file and offset.
        OSError: the file cannot be read.
    """
    if not span.is_jsonl:
        yield Document(span.path, _pieces(span, on_read))
        return
    for place, line in _lines(span, on_read):
        if line.strip():
            pieces, problem = _from_json(line, text_key)
            number, offset = (None, place) if span.is_divisible else (place, None)
            yield Document(span.path, pieces, problem, number, offset)


def _line_at(path: Path, offset: int) -> int:
    """The number of the line that begins at a byte of the file."""
    line, left = 1, offset
    with path.open("rb") as stream:
        while left and (piece := stream.read(min(left, _CHUNK_BYTES))):
            line, left = line + piece.count(b"\n"), left - len(piece)
    return line


def _from_json(line: bytes, text_key: str) -> tuple[Iterator[bytes], str]:
    """The text of a line and what is wrong with it, "" = nothing."""
    problem = ""
    text: Any = None
    try:
        found = json.loads(line)
        text = found.get(text_key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            problem = f"is a JSON {type(found).__name__}, expected an object with {text_key!r}"
        elif text_key in found and not isinstance(text, str):
            problem = f"has no text under {text_key!r}, but a JSON {type(text).__name__}"
        elif text_key not in found:
            keys = ", ".join(map(repr, list(found)[:5])) or "none"
            problem = f"has no text under {text_key!r}; its keys: {keys}"
    except ValueError as error:
        problem = f"is not JSON: {_reason(error)}"
    if problem:
        return iter(()), problem
    try:
        return iter((text.encode(),)), ""
    except UnicodeEncodeError as error:
        return iter(()), f"holds half of a surrogate pair: {error.reason}"


def _reason(error: ValueError) -> str:
    """What the parser says, without its count of lines, which begins with this one."""
    return (
        f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
    )


def _lines(span: Span, on_read: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """(place, line) of lines that begin within the span; the place is an offset in a file that is divisible,
    else the number of the line."""
    if not span.is_divisible:
        yield from enumerate(_split(span.path, _decompressed(span.path, on_read)), start=1)
        return
    with span.path.open("rb") as stream:
        at = span.start
        if at:
            stream.seek(at - 1)
            at += len(stream.readline()) - 1
        while at < span.end and (line := stream.readline(_MAX_LINE_BYTES)):
            yield at, line
            at += len(line)
            on_read(len(line))


def _split(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > _MAX_LINE_BYTES:
            raise DataError(f"{path}: has a line of more than {_MAX_LINE_BYTES >> 30} GiB")
    if rest:
        yield rest


def _pieces(span: Span, on_read: Callable[[int], None]) -> Iterator[bytes]:
    if span.path.suffix in _COMPRESSED:
        yield from _decompressed(span.path, on_read)
        return
    with span.path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            yield piece
            on_read(len(piece))


def _decompressed(path: Path, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """Contents of a .gz or .zst file with any number of members."""
    make, errors = _decompressor(path)
    at, member = 0, make()
    with path.open("rb") as stream:
        while raw := stream.read(_COMPRESSED_BYTES):
            pending = raw
            while pending:
                if member.eof:
                    member = make()
                try:
                    piece = member.decompress(pending)
                except errors as error:
                    raise DataError(f"{path}: damaged at or after offset {at}: {error}") from error
                if piece:
                    yield piece
                pending = member.unused_data if member.eof else b""
            at += len(raw)
            on_read(len(raw))
    if at and not member.eof:
        raise DataError(f"{path}: is cut short: it ends at offset {at}, within a compressed block")


def _decompressor(path: Path) -> tuple[Callable[[], Any], type[Exception]]:
    if path.suffix == ".gz":
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"{path}: needs the `zstandard` package: pip install 'megascale[data]'") from error
    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


def _inner_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
