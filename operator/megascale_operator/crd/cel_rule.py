"""CEL rules of a CRD, and functions that build CEL expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Reason = Literal["FieldValueInvalid", "FieldValueRequired", "FieldValueForbidden"]


@dataclass(frozen=True, slots=True)
class CelRule:
    """One entry of `x-kubernetes-validations`.

    Attributes:
        expression: CEL over `self` and, in rules about changes, `oldSelf`; must be true.
        message: error message if it is not.
        field: path of the field that the error names, relative to the rule, e.g. `.data.globalBatch`; "" for
            the section that has the rule.
        reason: the error's reason in the API server's reply.
    """

    expression: str
    message: str
    field: str = ""
    reason: Reason = "FieldValueInvalid"

    def schema(self) -> dict[str, str]:
        """Return the entry as it is written to the CRD."""
        entry = {"rule": self.expression, "message": self.message}
        if self.field:
            entry["fieldPath"] = self.field
        if self.reason != "FieldValueInvalid":
            entry["reason"] = self.reason
        return entry


def text(value: str) -> str:
    """Return a CEL string literal."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def literal(value: object) -> str:
    """Return a CEL literal of a number, a bool or a string."""
    if isinstance(value, bool):
        return str(value).lower()
    return text(value) if isinstance(value, str) else repr(value)


def texts(values: Sequence[str]) -> str:
    """Return a CEL list of string literals."""
    return f"[{', '.join(map(text, values))}]"


def table(values: Mapping[str, object]) -> str:
    """Return a CEL map literal."""
    return f"{{{', '.join(f'{text(key)}: {literal(value)}' for key, value in values.items())}}}"


def has(at: str, name: str) -> str:
    """Return an expression for whether the optional field is given."""
    return f"has({at}.{name})"


def either(at: str, name: str, otherwise: str) -> str:
    """Return an expression for the optional field, or `otherwise` if it is not given."""
    return f"({has(at, name)} ? {at}.{name} : {otherwise})"


def implies(condition: str, consequence: str) -> str:
    """Return an expression that requires `consequence` if `condition` is true."""
    return f"!({condition}) || ({consequence})"


def attach(schema: dict[str, Any], path: str, rules: Sequence[CelRule]) -> None:
    """Add `rules` to the section at `path` of `schema`.

    Args:
        path: field names separated by dots. For a list or map the path continues in its entries; rules at a
            list of objects apply to each entry.
    """
    place = schema
    for name in filter(None, path.split(".")):
        while "properties" not in place:
            place = place["items"] if "items" in place else place["additionalProperties"]
        place = place["properties"][name]
    if "items" in place and "properties" in place["items"]:
        place = place["items"]
    place.setdefault("x-kubernetes-validations", []).extend(rule.schema() for rule in rules)
