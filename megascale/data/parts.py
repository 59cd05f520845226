"""Prepares data in parts: each is a small dataset that one worker makes and that survives a killed run.

Files are split into about 64 parts of 1 to 32 MiB. The split, and so the result, does not depend on the
number of workers. A part is complete when its .json exists, which is renamed to its name last.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from megascale.core.contract.bounded_json import parse_json
from megascale.core.contract.codec import decode
from megascale.data.documents import Document, Span, read_documents, whole
from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.data.tokenizer import Tokenizer, open_tokenizer
from megascale.errors import DataError
from megascale.prctl import die_with_parent

_PARTS: Final = 64
_LEAST_BYTES: Final = 1 << 20
_MOST_BYTES: Final = 1 << 25
_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Recipe:
    """How documents become tokens.

    Attributes:
        tokenizer: "byte" or the path of a tokenizer.json.
        text_key: key of the text in JSONL files.
        skip_bad: skip and count documents that cannot be used; otherwise the first of them is an error.
    """

    tokenizer: str = "byte"
    text_key: str = "text"
    skip_bad: bool = False


BYTES: Final = Recipe()


@dataclass(frozen=True, slots=True)
class PartFacts:
    """Counts of a part, and the first documents that were skipped."""

    text_bytes: int
    documents: int
    tokens: int
    skipped: int
    examples: list[str]


def plan_parts(files: Sequence[Path], sizes: Sequence[int]) -> list[list[Span]]:
    """Lists of consecutive spans, one per part; only uncompressed JSONL files are split."""
    part_bytes = min(max(sum(sizes) // _PARTS, _LEAST_BYTES), _MOST_BYTES)
    parts: list[list[Span]] = [[]]
    room = part_bytes
    for path, size in zip(files, sizes, strict=True):
        step = part_bytes if Span(path, 0, size).is_divisible else max(size, 1)
        for start in range(0, max(size, 1), step):
            span = Span(path, start, min(start + step, size))
            if parts[-1] and span.end - span.start > room:
                parts.append([])
                room = part_bytes
            parts[-1].append(span)
            room -= span.end - span.start
    return parts


def plan_digest(recipe: Recipe, tokenizer: Tokenizer, parts: Sequence[Sequence[Span]]) -> str:
    """A digest of everything that the contents of the parts depend on."""
    paths = {span.path for part in parts for span in part}
    stats = {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)}
    plan = [[(str(span.path), span.start, span.end) for span in part] for part in parts]
    what = [asdict(recipe), tokenizer.digest, stats, plan]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def make_parts(
    folder: Path,
    parts: Sequence[Sequence[Span]],
    recipe: Recipe,
    workers: int,
    on_read: Callable[[int], None],
) -> list[PartFacts]:
    """Make the parts that are missing in `folder`; returns the facts of all, in order.

    Raises:
        DataError: a document or file cannot be used; complete parts stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [_facts(folder, index) for index in range(len(parts))]
    for part, facts in zip(parts, found, strict=True):
        if facts is not None:
            on_read(_bytes(part))
    missing = [index for index, facts in enumerate(found) if facts is None]
    if min(workers, len(missing)) <= 1:
        tokenizer = open_tokenizer(recipe.tokenizer)
        for index in missing:
            found[index] = _make_part(folder / str(index), parts[index], recipe, tokenizer, on_read)
    else:
        for index, facts in _in_processes(folder, parts, missing, recipe, workers):
            found[index] = facts
            on_read(_bytes(parts[index]))
    return [facts for facts in found if facts is not None]


def _in_processes(
    folder: Path, parts: Sequence[Sequence[Span]], missing: list[int], recipe: Recipe, workers: int
) -> Iterator[tuple[int, PartFacts]]:
    """Yields parts as they are completed, with a bounded number in progress."""
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(missing))
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin_worker) as pool:
        queue = iter(missing)
        running: dict[Any, int] = {}
        try:
            while True:
                for index in queue:
                    running[pool.submit(_work, folder / str(index), parts[index], recipe)] = index
                    if len(running) >= 2 * count:
                        break
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed (out of memory?); run again with fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    die_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker; the library has no other setting


@functools.lru_cache(maxsize=1)
def _tokenizer(name: str) -> Tokenizer:
    return open_tokenizer(name)


def _work(base: Path, part: Sequence[Span], recipe: Recipe) -> PartFacts:
    return _make_part(base, part, recipe, _tokenizer(recipe.tokenizer), lambda _: None)


def _make_part(
    base: Path, part: Sequence[Span], recipe: Recipe, tokenizer: Tokenizer, on_read: Callable[[int], None]
) -> PartFacts:
    """Write `<base>.bin`, `.idx` and, last, `.json`."""
    text_bytes = documents = tokens = skipped = 0
    examples: list[str] = []
    end = np.asarray([tokenizer.end_of_document], dtype=tokenizer.dtype)
    with IndexedWriter(bin_path(base), idx_path(base), tokenizer.dtype) as writer:
        for span in part:
            for document in read_documents(span, recipe.text_key, on_read):
                try:
                    for piece_bytes, piece in _encoded(document, tokenizer):
                        writer.append(piece)
                        text_bytes, tokens = text_bytes + piece_bytes, tokens + len(piece)
                except _BadDocumentError as error:
                    if not recipe.skip_bad:
                        raise DataError(f"{error}; skipBadDocuments (--skip-bad) leaves such out") from error
                    skipped += 1
                    if len(examples) < _EXAMPLES:
                        examples.append(str(error))
                    continue
                writer.append(end)
                writer.end_document()
                documents, tokens = documents + 1, tokens + 1
    facts = PartFacts(text_bytes, documents, tokens, skipped, examples)
    partial = base.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(facts)))
    partial.replace(base.with_suffix(".json"))
    return facts


class _BadDocumentError(Exception):
    """A document that cannot be used; its text says where it is and why."""

    def __init__(self, document: Document, problem: str) -> None:
        super().__init__(document, problem)
        self._document, self._problem = document, problem

    def __str__(self) -> str:
        return f"{self._document.where}: {self._problem}"


def _encoded(document: Document, tokenizer: Tokenizer) -> Iterator[tuple[int, NDArray[np.integer]]]:
    """(bytes, tokens) of each piece. It raises before it has yielded anything, or not at all."""
    if document.problem:
        raise _BadDocumentError(document, document.problem)
    if tokenizer.streams:
        for piece in document.pieces:
            yield len(piece), tokenizer.encode(piece)
        return
    text = whole(document)
    try:
        yield len(text), tokenizer.encode(text)
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte {text[error.start]:#04x} at offset {error.start}"
        raise _BadDocumentError(document, problem) from error


def _facts(folder: Path, index: int) -> PartFacts | None:
    try:
        return decode(PartFacts, parse_json((folder / f"{index}.json").read_bytes()))
    except (FileNotFoundError, ValueError):  # not made, or empty after a power failure
        return None


def _bytes(part: Sequence[Span]) -> int:
    return sum(span.end - span.start for span in part)
