"""Counts and durations as people read them."""

from __future__ import annotations

from typing import Final

_UNITS: Final = (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1))


def plural(count: int, one: str, many: str = "") -> str:
    """Return the count with the word in the number that fits; `many` is `one` with an s by default."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration_text(seconds: float) -> str:
    """Return a duration in its two largest units: 45 s, 3 min 20 s, 5 h 3 min, 12 d 4 h."""
    for unit, size, below, part in _UNITS:
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            return f"{whole} {unit} {rest // part} {below}"
    return f"{seconds:.0f} s"
