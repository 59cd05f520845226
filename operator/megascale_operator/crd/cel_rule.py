"""CEL rules of a CRD, and the few words of CEL that they are written with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Reason = Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden"]


@dataclass(frozen=True, slots=True)
class CelRule:
    """One entry of `x-kubernetes-validations`.

    Attributes:
        expression: CEL over `self`, and `oldSelf` for what may not change.
        message: what must hold.
        field: the field to blame, relative to the CEL rule's place: `.data.globalBatch`; "" = that place.
        reason: how the API server classes the fault.
    """

    expression: str
    message: str
    field: str = ""
    reason: Reason = "FieldValueInvalid"

    def schema(self) -> dict[str, str]:
        """The entry as it stands in the CRD."""
        entry = {"rule": self.expression, "message": self.message}
        if self.field:
            entry["fieldPath"] = self.field
        if self.reason != "FieldValueInvalid":
            entry["reason"] = self.reason
        return entry


def text(value: str) -> str:
    """A string literal."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def literal(value: object) -> str:
    """A literal of a number, a truth value or a string."""
    if isinstance(value, bool):
        return str(value).lower()
    return text(value) if isinstance(value, str) else repr(value)


def texts(values: Sequence[str]) -> str:
    """A list of string literals."""
    return f"[{', '.join(map(text, values))}]"


def table(values: Mapping[str, object]) -> str:
    """A map literal."""
    return f"{{{', '.join(f'{text(key)}: {literal(value)}' for key, value in values.items())}}}"


def has(at: str, name: str) -> str:
    """Whether the optional field is given."""
    return f"has({at}.{name})"


def either(at: str, name: str, otherwise: str) -> str:
    """The optional field, or what stands for it when it is left out."""
    return f"({has(at, name)} ? {at}.{name} : {otherwise})"


def implies(condition: str, consequence: str) -> str:
    """`consequence` must hold where `condition` does."""
    return f"!({condition}) || ({consequence})"


def attach(schema: dict[str, Any], path: str, rules: Sequence[CelRule]) -> None:
    """Put `rules` at `path` of `schema`; lists and maps are passed through by the name of their field."""
    place = schema
    for name in filter(None, path.split(".")):
        while "properties" not in place:
            place = place["items"] if "items" in place else place["additionalProperties"]
        place = place["properties"][name]
    if "items" in place and "properties" in place["items"]:
        place = place["items"]
    place.setdefault("x-kubernetes-validations", []).extend(rule.schema() for rule in rules)
