"""Prepares a dataset from text: `<prefix>.bin`, `<prefix>.idx` and a description in `<prefix>.json`.

A dataset is complete when its .idx exists: everything is written durably to temporary files, and the .idx is
renamed to its name last. A lock file prevents two processes from making the same dataset. The parts that a
killed run has completed are in the hidden folder `.<prefix>.parts`, and the next run uses them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic.alias_generators import to_camel

from megascale.core.contract.bounded_json import parse_json
from megascale.core.contract.codec import decode
from megascale.data.indexed import IndexedTokens, bin_path, idx_path, write_index
from megascale.data.parts import BYTES, PartFacts, Recipe, make_parts, plan_digest, plan_parts
from megascale.data.sources import find_files
from megascale.data.tokenizer import Tokenizer, open_tokenizer
from megascale.errors import DataError

OnProgress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in total."""
Notify = Callable[[str], None]
"""Called with a line for the user."""

_CHUNK_BYTES: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Description:
    """The description of a dataset in `<prefix>.json`.

    Attributes:
        sources, globs: the arguments of `prepare`.
        files, text_bytes: how much was read; `tokens` includes one end-of-document per document.
        tokenizer: "byte" or the path of a tokenizer.json; tokenizer_digest: of that file.
        skipped: documents that could not be used.
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
    tokenizer_digest: str = ""
    end_of_document: int = 256
    text_key: str = "text"
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A complete dataset; `made` is False if an existing one was reused."""

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
    recipe: Recipe = BYTES,
    workers: int = 1,
    force: bool = False,
    on_progress: OnProgress = lambda _done, _total: None,
    notify: Notify = lambda _line: None,
) -> Prepared:
    """Make the dataset at `prefix` from text and JSONL files, or reuse an existing one of the same sources.

    Args:
        globs: patterns of file names; files in folders must match one.
        workers: processes that tokenize; the result does not depend on their number.

    Raises:
        DataError: a source is missing or unreadable, another dataset is at `prefix`, or it cannot be written.
    """
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        with _locked(prefix, notify):
            if not force and idx_path(prefix).exists() and bin_path(prefix).exists():
                return Prepared(prefix, _reusable(prefix, sources, globs, recipe), made=False)
            maker = _Maker(prefix, list(sources), list(globs), recipe, notify)
            return Prepared(prefix, maker.make(workers, on_progress), made=True)
    except OSError as error:
        raise DataError(f"{error.filename or prefix}: {error.strerror}; the dataset was not made") from error


def describe(prefix: Path) -> Description | None:
    """Read the description of a dataset; None for datasets made by other tools.

    Raises:
        DataError: the file is not a description.
    """
    path = json_path(prefix)
    try:
        found: Any = parse_json(path.read_bytes())
        return decode(Description, {_SNAKE[name]: value for name, value in found.items()})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: is not the description of a dataset ({error}); remove it or use --force"
        ) from error


def as_json(description: Description) -> dict[str, Any]:
    """The description with camelCase keys."""
    return {_CAMEL[name]: value for name, value in asdict(description).items()}


_CAMEL: Final = {field.name: to_camel(field.name) for field in fields(Description)}
_SNAKE: Final = {camel: name for name, camel in _CAMEL.items()}


def _reusable(prefix: Path, sources: Sequence[str], globs: Sequence[str], recipe: Recipe) -> Description:
    """The description of the existing dataset; raises `DataError` if it was made in another way."""
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
            f"{prefix}: was prepared from {_as_options(description.sources, description.globs)},"
            f" not from {_as_options(sources, globs)}; {advice}"
        )
    for what, before, wanted in (
        ("tokenizer", description.tokenizer, recipe.tokenizer),
        ("text key", description.text_key, recipe.text_key),
    ):
        if before != wanted:
            raise DataError(f"{prefix}: was prepared with {what} {before}, not {wanted}; {advice}")
    return description


def _as_options(sources: Sequence[str], globs: Sequence[str]) -> str:
    chosen = "" if list(globs) == ["*"] else f" (--glob {' --glob '.join(globs)})"
    return f"{' '.join(sources)}{chosen}"


@contextlib.contextmanager
def _locked(prefix: Path, notify: Notify) -> Iterator[None]:
    """Lock `prefix` for one process; the kernel releases the lock of a process that dies."""
    with _hidden(prefix, "lock").open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"{prefix} is being made by another process; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _hidden(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(f".{prefix.name}.{suffix}")


class _Maker:
    """Makes one dataset; the caller holds its lock."""

    def __init__(
        self, prefix: Path, sources: list[str], globs: list[str], recipe: Recipe, notify: Notify
    ) -> None:
        self._prefix, self._sources, self._globs, self._recipe = prefix, sources, globs, recipe
        self._notify = notify
        self._ours = (bin_path(prefix), json_path(prefix), idx_path(prefix))
        self._partial = {path: _hidden(prefix, f"{path.suffix[1:]}.partial") for path in self._ours}
        self._parts = _hidden(prefix, "parts")

    def make(self, workers: int, on_progress: OnProgress) -> Description:
        """Tokenize, join, publish."""
        skip = {path.absolute() for path in (*self._ours, *self._partial.values())}
        files = find_files(self._sources, self._globs, leave_out=lambda path: path.absolute() in skip)
        tokenizer = open_tokenizer(self._recipe.tokenizer)
        try:
            with self._kept_parts():
                facts, folder = self._tokenize(files, tokenizer, workers, on_progress)
                description = self._join(folder, facts, files, tokenizer)
            self._publish()
        finally:
            for path in self._partial.values():
                path.unlink(missing_ok=True)
        shutil.rmtree(self._parts)
        return description

    @contextlib.contextmanager
    def _kept_parts(self) -> Iterator[None]:
        """After an error keep complete parts for the next run; remove the folder if there are none."""
        try:
            yield
        except (DataError, OSError):
            if not any(self._parts.glob("*/*.json")):
                shutil.rmtree(self._parts, ignore_errors=True)
            raise

    def _tokenize(
        self, files: list[Path], tokenizer: Tokenizer, workers: int, on_progress: OnProgress
    ) -> tuple[list[PartFacts], Path]:
        """Make all parts; returns their facts and their folder."""
        sizes = [path.stat().st_size for path in files]
        parts = plan_parts(files, sizes)
        folder = self._parts / plan_digest(self._recipe, tokenizer, parts)
        for other in self._parts.glob("*"):
            if other != folder:
                shutil.rmtree(other)
        total, done = sum(sizes), 0

        def on_read(count: int) -> None:
            nonlocal done
            done += count
            on_progress(done, total)

        if folder.exists():
            kept = sum(1 for _ in folder.glob("*.json"))
            self._notify(
                f"{self._prefix}: going on where an earlier run stopped: {kept} of {len(parts)} parts"
            )
        facts = make_parts(folder, parts, self._recipe, workers, on_read)
        for part in facts:
            for example in part.examples:
                self._notify(f"left out: {example}")
        if sum(part.text_bytes for part in facts) == 0:
            left_out = sum(part.skipped for part in facts)
            what = f"{left_out} documents were left out" if left_out else f"all {len(files)} files are empty"
            shutil.rmtree(self._parts)
            raise DataError(f"{' '.join(self._sources)}: {what}, no text remains")
        return facts, folder

    def _join(
        self, folder: Path, facts: Sequence[PartFacts], files: Sequence[Path], tokenizer: Tokenizer
    ) -> Description:
        """Join the parts into one dataset, in temporary files."""
        digest = _join_parts(
            [folder / str(index) for index in range(len(facts))],
            self._partial[bin_path(self._prefix)],
            self._partial[idx_path(self._prefix)],
            tokenizer.dtype,
        )
        description = Description(
            sources=self._sources,
            globs=self._globs,
            files=len(files),
            text_bytes=sum(part.text_bytes for part in facts),
            documents=sum(part.documents for part in facts),
            tokens=sum(part.tokens for part in facts),
            tokenizer=tokenizer.name,
            vocab_size=tokenizer.vocab_size,
            dtype=tokenizer.dtype.name,
            digest=digest,
            tokenizer_digest=tokenizer.digest,
            end_of_document=tokenizer.end_of_document,
            text_key=self._recipe.text_key,
            skipped=sum(part.skipped for part in facts),
        )
        text = json.dumps(as_json(description), indent=2) + "\n"
        _write_durably(self._partial[json_path(self._prefix)], text)
        return description

    def _publish(self) -> None:
        """Rename all files to their names; the .idx comes last, so that no partial dataset looks complete."""
        idx_path(self._prefix).unlink(missing_ok=True)
        for path in self._ours:
            self._partial[path].replace(path)
        folder = os.open(self._prefix.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _join_parts(parts: Sequence[Path], tokens: Path, index: Path, dtype: np.dtype[np.integer]) -> str:
    """Concatenate parts into one dataset; returns the digest of its tokens."""
    digest = hashlib.sha256()
    lengths, borders, sequences = [], [np.zeros(1, np.int64)], 0
    with tokens.open("wb") as out:
        for part in parts:
            opened = IndexedTokens.open(part)
            lengths.append(opened.lengths)
            borders.append(opened.borders[1:] + sequences)
            sequences += len(opened.lengths)
            with bin_path(part).open("rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    write_index(index, np.concatenate(lengths), np.concatenate(borders), dtype)
    return f"sha256:{digest.hexdigest()}"


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
