"""Text to token files, once: `<prefix>.bin`, `<prefix>.idx` and a description in `<prefix>.json`.

A dataset counts as made when its .idx is there: everything is written to temporary files and flushed to the
disk first, and the .idx is renamed into place last. A lock file keeps two processes from making the same
one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from megascale.data import tokenizer
from megascale.data.indexed import IndexedTokens, IndexedWriter, bin_path, idx_path
from megascale.data.sources import find_files
from megascale.errors import DataError

OnProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""
Notify = Callable[[str], None]
"""Called with a line for the user."""

_CHUNK_BYTES: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Description:
    """What `<prefix>.json` says about a dataset.

    Attributes:
        sources, globs: as they were given.
        files, text_bytes: what was read; `tokens` includes one end-of-document per file.
        digest: sha256 of the .bin file.
    """

    sources: list[str]
    globs: list[str]
    files: int
    text_bytes: int
    documents: int
    tokens: int
    tokenizer: str
    vocab_size: int
    dtype: str
    digest: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A dataset that is ready; `made` is false when an earlier one was reused."""

    prefix: Path
    description: Description
    made: bool


def json_path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.json")


def prepare(
    sources: Sequence[str],
    prefix: Path,
    *,
    globs: Sequence[str] = ("*",),
    force: bool = False,
    on_progress: OnProgress = lambda _done, _total: None,
    notify: Notify = lambda _line: None,
) -> Prepared:
    """Make the dataset at `prefix` from text, byte by byte, one document per file; reuse it when it is there.

    Raises:
        DataError: a source is missing or unreadable, `prefix` holds something else, or it cannot be written.
    """
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with _locked(prefix, notify):
            if not force and idx_path(prefix).exists() and bin_path(prefix).exists():
                return Prepared(prefix, _reusable(prefix, sources, globs), made=False)
            description = _make(list(sources), prefix, list(globs), on_progress)
            return Prepared(prefix, description, made=True)
    except OSError as error:
        raise DataError(f"{error.filename or prefix}: {error.strerror}; the dataset was not made") from error


def describe(prefix: Path) -> Description | None:
    """The description beside a dataset; None for datasets made by other tools.

    Raises:
        DataError: the file is not such a description.
    """
    path = json_path(prefix)
    try:
        fields = json.loads(path.read_bytes())
        return Description(**{_SNAKE[name]: value for name, value in fields.items()})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is not the description of a dataset ({error}); remove it or use --force"
        ) from error


def as_json(description: Description) -> dict[str, Any]:
    """The description with camelCase keys."""
    return {_CAMEL[name]: value for name, value in asdict(description).items()}


_CAMEL: Final = {name: name for name in Description.__dataclass_fields__} | {
    "text_bytes": "textBytes",
    "vocab_size": "vocabSize",
}
_SNAKE: Final = {camel: name for name, camel in _CAMEL.items()}


def _reusable(prefix: Path, sources: Sequence[str], globs: Sequence[str]) -> Description:
    """The description of the dataset that is already there, if it is the one that is wanted."""
    IndexedTokens.open(prefix)
    description = describe(prefix)
    advice = "choose another --output, or replace it with --force"
    if description is None:
        raise DataError(
            f"{bin_path(prefix)}: was not made by `megascale data prepare` ({json_path(prefix)} is missing);"
            f" {advice}"
        )
    if description.sources != list(sources) or description.globs != list(globs):
        raise DataError(
            f"{prefix}: was prepared from {_words(description.sources, description.globs)},"
            f" not from {_words(sources, globs)}; {advice}"
        )
    return description


def _words(sources: Sequence[str], globs: Sequence[str]) -> str:
    chosen = "" if list(globs) == ["*"] else f" (--glob {' --glob '.join(globs)})"
    return f"{' '.join(sources)}{chosen}"


@contextlib.contextmanager
def _locked(prefix: Path, notify: Notify) -> Iterator[None]:
    """One maker per prefix; the kernel releases the lock of a process that dies."""
    with _hidden(prefix, "lock").open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"{prefix} is being made by another process; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _hidden(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f".{prefix.name}.{suffix}")


def _make(sources: list[str], prefix: Path, globs: list[str], on_progress: OnProgress) -> Description:
    ours = {bin_path(prefix), idx_path(prefix), json_path(prefix)}
    partial = {path: _hidden(prefix, f"{path.suffix[1:]}.partial") for path in sorted(ours)}
    skip = {path.absolute() for path in (*ours, *partial.values())}
    files = find_files(sources, globs, leave_out=lambda path: path.absolute() in skip)
    try:
        with IndexedWriter(
            partial[bin_path(prefix)], partial[idx_path(prefix)], tokenizer.TOKEN_DTYPE
        ) as writer:
            text_bytes, digest = _encode(files, writer, on_progress)
        if text_bytes == 0:
            raise DataError(f"{' '.join(sources)}: all {len(files)} files are empty")
        description = Description(
            sources=sources,
            globs=globs,
            files=len(files),
            text_bytes=text_bytes,
            documents=len(files),
            tokens=text_bytes + len(files),
            tokenizer=tokenizer.NAME,
            vocab_size=tokenizer.VOCAB_SIZE,
            dtype=tokenizer.TOKEN_DTYPE.name,
            digest=digest,
        )
        _write_durably(partial[json_path(prefix)], json.dumps(as_json(description), indent=2) + "\n")
        _publish(prefix, partial)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return description


def _encode(files: Sequence[Path], writer: IndexedWriter, on_progress: OnProgress) -> tuple[int, str]:
    """Bytes of text read, and digest of the tokens written."""
    end = np.asarray([tokenizer.END_OF_DOCUMENT], dtype=tokenizer.TOKEN_DTYPE)
    total, done, digest = sum(path.stat().st_size for path in files), 0, hashlib.sha256()
    for path in files:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                tokens = tokenizer.encode(chunk)
                writer.append(tokens)
                digest.update(tokens.data)
                done += len(chunk)
                on_progress(done, total)
        writer.append(end)
        digest.update(end.data)
        writer.end_document()
    return done, f"sha256:{digest.hexdigest()}"


def _publish(prefix: Path, partial: dict[Path, Path]) -> None:
    """Rename everything into place; until the last rename there is no .idx, so nothing looks complete."""
    idx_path(prefix).unlink(missing_ok=True)
    for path in (bin_path(prefix), json_path(prefix), idx_path(prefix)):
        partial[path].replace(path)
    folder = os.open(prefix.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
