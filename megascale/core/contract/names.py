"""Names in few letters: lists of nodes in the job record, revisions of the manifest where people read them.

The prefix and the suffix that all names of a long list share are written once.

Keeps the job record of 1,536 nodes with cloud host names far below its 64 KiB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from megascale.core.contract.codec import Json

_WORTH_PACKING: Final = 64
_SHOWN: Final = 12


def pack(names: Sequence[str]) -> Json:
    """`names` as JSON: a plain list if short, else prefix, suffix and the middles joined by spaces."""
    if len(names) < _WORTH_PACKING or any(not name or " " in name for name in names):
        return list(names)
    prefix = _shared_start(names)
    room = min(map(len, names)) - len(prefix)
    suffix = _shared_start([name[::-1] for name in names])[:room][::-1]
    middles = [name[len(prefix) : len(name) - len(suffix)] for name in names]
    return {"prefix": prefix, "suffix": suffix, "names": " ".join(middles)}


def short_revision(revision: str | None) -> str:
    """The first letters of a revision, enough to tell it from others of the job."""
    return (revision or "none")[:_SHOWN]


def _shared_start(names: Sequence[str]) -> str:
    # What the first and the last in order share, all in between share too.
    first, last = min(names), max(names)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def unpack(packed: Json) -> list[str]:
    """The inverse of `pack`.

    Raises:
        ValueError: not something that `pack` returns.
    """
    if isinstance(packed, list):
        return [str(name) for name in packed]
    if not isinstance(packed, dict) or not all(
        isinstance(packed.get(key), str) for key in ("prefix", "suffix", "names")
    ):
        raise ValueError(f"expected a list of names, got {packed!r}")
    middles = str(packed["names"]).split(" ")
    return [f"{packed['prefix']}{middle}{packed['suffix']}" for middle in middles]
