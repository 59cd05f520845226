"""A schema violation with the API server's message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """One invalid field; `reason` is that of a metav1.StatusCause."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


def child(path: str, name: str | int) -> str:
    """Return the path of a field or entry, such as `spec.faults[0].rank`."""
    if isinstance(name, int):
        return f"{path}[{name}]"
    return f"{path}.{name}" if path else name
