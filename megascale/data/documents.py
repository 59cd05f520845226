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

from megascale.core.contract.bounded_json import parse_json
from megascale.errors import DataError

_CHUNK_BYTES: Final = 1 << 22
_INPUT_BYTES: Final = {".gz": 1 << 16, ".zst": 1 << 12}
"""Read at once: 1032 times as many bytes at most come out of gzip, 128 KiB for 4 bytes out of Zstandard."""
_MAX_DOCUMENT_BYTES: Final = 1 << 28
_MAX_GROWTH: Final = 1000
_GROWTH_FREE_BYTES: Final = 1 << 26
_JSONL: Final = frozenset({".jsonl", ".ndjson"})


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


def whole(document: Document) -> bytes:
    """The text of a document in one piece.

    Raises:
        DataError: it has more bytes than a document may have.
    """
    text = bytearray()
    for piece in document.pieces:
        text += piece
        if len(text) > _MAX_DOCUMENT_BYTES:
            raise _too_long(document.path, "the document")
    return bytes(text)


def _from_json(line: bytes, text_key: str) -> tuple[Iterator[bytes], str]:
    """The text of a line and what is wrong with it, "" = nothing."""
    problem = ""
    text: Any = None
    try:
        found: Any = parse_json(line)
        text = found.get(text_key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            problem = f"is a JSON {type(found).__name__}, expected an object with {text_key!r}"
        elif text_key in found and not isinstance(text, str):
            problem = f"has no text under {text_key!r}, but a JSON {type(text).__name__}"
        elif text_key not in found:
            keys = ", ".join(repr(key)[:60] for key in list(found)[:5]) or "none"
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
        while at < span.end and (line := stream.readline(_MAX_DOCUMENT_BYTES + 1)):
            if len(line) > _MAX_DOCUMENT_BYTES:
                raise _too_long(span.path, f"the line at offset {at}")
            yield at, line
            at += len(line)
            on_read(len(line))


def _split(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    number, rest = 1, bytearray()
    for piece in pieces:
        first, *others = piece.split(b"\n")
        rest += first
        for line in others:
            if len(rest) > _MAX_DOCUMENT_BYTES:
                break
            yield bytes(rest)
            number, rest = number + 1, bytearray(line)
        if len(rest) > _MAX_DOCUMENT_BYTES:
            raise _too_long(path, f"line {number}")
    if rest:
        yield bytes(rest)


def _too_long(path: Path, what: str) -> DataError:
    return DataError(
        f"{path}: {what} has more than {_MAX_DOCUMENT_BYTES} bytes, the most that a document may have;"
        " split it, or leave the file out"
    )


def _pieces(span: Span, on_read: Callable[[int], None]) -> Iterator[bytes]:
    if span.path.suffix in _INPUT_BYTES:
        yield from _decompressed(span.path, on_read)
        return
    with span.path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            yield piece
            on_read(len(piece))


def _decompressed(path: Path, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """Contents of a .gz or .zst file with any number of members.

    Raises:
        DataError: the file is damaged or cut short, or grows beyond what text does.
    """
    make, errors = _decompressor(path)
    at, grown, member = 0, 0, make()
    with path.open("rb") as stream:
        while raw := stream.read(_INPUT_BYTES[path.suffix]):
            pending = raw
            while pending:
                if member.eof:
                    member = make()
                try:
                    piece = member.decompress(pending)
                except errors as error:
                    raise DataError(f"{path}: damaged at or after offset {at}: {error}") from error
                grown += len(piece)
                if grown > _GROWTH_FREE_BYTES + _MAX_GROWTH * (at + len(raw)):
                    raise _grows(path, at + len(raw), grown)
                if piece:
                    yield piece
                pending = member.unused_data if member.eof else b""
            at += len(raw)
            on_read(len(raw))
    if at and not member.eof:
        raise DataError(f"{path}: is cut short: it ends at offset {at}, within a compressed block")


def _grows(path: Path, at: int, grown: int) -> DataError:
    return DataError(
        f"{path}: the {at} bytes up to offset {at} decompress to {grown} bytes or more, expected at most"
        f" {_MAX_GROWTH} times as many, because no text shrinks so far;"
        " decompress the file yourself if it is sound, or leave it out"
    )


def _decompressor(path: Path) -> tuple[Callable[[], Any], type[Exception]]:
    if path.suffix == ".gz":
        return lambda: zlib.decompressobj(wbits=31), zlib.error
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"{path}: needs the `zstandard` package: pip install 'megascale[data]'") from error
    return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


def _inner_suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _INPUT_BYTES else path.suffix
