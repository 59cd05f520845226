"""A field at fault, worded as the API server words it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault; `reason` is that of a metav1.StatusCause."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


def child(path: str, name: str | int) -> str:
    """`spec.faults[0].rank`"""
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else name
