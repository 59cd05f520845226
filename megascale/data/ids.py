"""Finds token ids that a model does not know, before anything is trained on them.

Reading all tokens of a large dataset takes minutes, so the smallest and largest id are kept beside it, in
`.<name>.ids.json`, with the size and time of change of the file that they were read from.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

from megascale.data.indexed import IndexedTokens, bin_path
from megascale.data.prepare import OnProgress, describe
from megascale.errors import DataError

_AT_ONCE: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class IdRange:
    """The smallest and largest id of a token file, and the size in bytes and time of change it then had."""

    least: int
    largest: int
    bytes: int
    mtime_ns: int


def check_ids(
    prefix: Path,
    vocab_size: int,
    on_progress: OnProgress = lambda _done, _total: None,
    *,
    most_bytes: int | None = None,
) -> None:
    """Check every token id of a dataset against the model's vocabulary.

    A dataset that `megascale data prepare` made is not read for it: its description has the number of ids.

    Args:
        vocab_size: number of token ids of the model, without padding.
        on_progress: called with the bytes that were read and those of the whole file.
        most_bytes: leave out a larger file that was not checked before; None = there is no limit.

    Raises:
        DataError: an id is negative or not below `vocab_size`; names file, id, position and `vocabSize`.
    """
    tokens = IndexedTokens.open(prefix).tokens
    description = describe(prefix)
    if description is not None and description.tokens == len(tokens):
        if description.vocab_size > vocab_size:
            raise DataError(
                f"{prefix}: has token ids up to {description.vocab_size - 1}, but model.vocabSize is"
                f" {vocab_size}; use {description.vocab_size} or more"
            )
        return
    found = _known(prefix)
    if found is None and most_bytes is not None and tokens.nbytes > most_bytes:
        return
    found = found or _read(prefix, tokens, on_progress)
    if found.least >= 0 and found.largest < vocab_size:
        return
    at = _first(tokens, lambda part: (part < 0) | (part >= vocab_size))
    cure = f"set vocabSize to {found.largest + 1} or more" if found.least >= 0 else "ids must not be negative"
    raise DataError(
        f"{bin_path(prefix)}: token {at} (byte {at * tokens.itemsize}) has id {tokens[at]}, but"
        f" spec.runtime.megatron.model.vocabSize is {vocab_size}: ids must be 0 to {vocab_size - 1}; the"
        f" ids of this file are {found.least} to {found.largest}: {cure}, or prepare it with the model's"
        " tokenizer"
    )


def _first(tokens: np.ndarray[tuple[int], np.dtype[np.integer]], wrong: Callable[..., np.ndarray]) -> int:
    """Index of the first token for which `wrong` holds; there is one."""
    for at in range(0, len(tokens), _AT_ONCE):
        flags = wrong(tokens[at : at + _AT_ONCE])
        if flags.any():
            return at + int(flags.argmax())
    raise AssertionError


def _read(
    prefix: Path, tokens: np.ndarray[tuple[int], np.dtype[np.integer]], on_progress: OnProgress
) -> IdRange:
    """Read all tokens, and keep the result if the folder can be written."""
    least = largest = 0
    for at in range(0, len(tokens), _AT_ONCE):
        part = tokens[at : at + _AT_ONCE]
        least, largest = min(least, int(part.min())), max(largest, int(part.max()))
        on_progress((at + len(part)) * tokens.itemsize, tokens.nbytes)
    stat = bin_path(prefix).stat()
    found = IdRange(least, largest, stat.st_size, stat.st_mtime_ns)
    partial = _note(prefix).with_suffix(".partial")
    with contextlib.suppress(OSError):  # data is often read-only; it is then read again next time
        partial.write_text(json.dumps(asdict(found)))
        partial.replace(_note(prefix))
    return found


def _known(prefix: Path) -> IdRange | None:
    """What an earlier check found, if the file has not changed since."""
    try:
        found = IdRange(**json.loads(_note(prefix).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    stat = bin_path(prefix).stat()
    return found if (found.bytes, found.mtime_ns) == (stat.st_size, stat.st_mtime_ns) else None


def _note(prefix: Path) -> Path:
    return prefix.with_name(f".{prefix.name}.ids.json")
