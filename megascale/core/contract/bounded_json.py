"""Parses JSON that other people or machines wrote: nesting is bounded."""

from __future__ import annotations

import json
from typing import Any, Final

from megascale.core.contract.codec import Json

MAX_DEPTH: Final = 64


def parse_json(text: str | bytes, max_depth: int = MAX_DEPTH) -> Json:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON (a `json.JSONDecodeError`), or nested more than `max_depth` levels deep.
    """
    problem = f"JSON nested more than {max_depth} levels deep"
    try:
        value: Json = json.loads(text)
    except RecursionError as error:
        raise ValueError(problem) from error
    if isinstance(value, dict | list) and _brackets(text) > max_depth and _is_deeper(value, max_depth):
        raise ValueError(problem)
    return value


def _brackets(text: str | bytes) -> int:
    """An upper bound of the depth that is quick to get."""
    if isinstance(text, bytes):
        return text.count(b"[") + text.count(b"{")
    return text.count("[") + text.count("{")


def _is_deeper(value: Json, levels: int) -> bool:
    """Goes through the lists and objects level by level, without recursion."""
    level: list[Any] = [value]
    for _ in range(levels):
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, dict | list)
        ]
    return bool(level)
