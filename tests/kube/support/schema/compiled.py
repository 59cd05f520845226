"""A structural schema with its CEL rules, compiled once."""

from __future__ import annotations

import copy

from .defaulting import default
from .listtypes import list_violations
from .pruning import prune
from .rules import CompiledRules
from .values import value_violations
from .violation import Json, Violation

BLOCKING = frozenset(
    {"FieldValueRequired", "FieldValueTooLong", "FieldValueTooMany", "FieldValueTypeInvalid"}
)
"""Violations after which the API server does not evaluate CEL rules."""
IMPLICIT = ("apiVersion", "kind", "metadata")


class CompiledSchema:
    """The schema of one version of a custom resource.

    Args:
        schema: `openAPIV3Schema` of the version.

    Raises:
        ValueError: a rule is not valid CEL.
    """

    def __init__(self, schema: Json) -> None:
        self._schema = schema
        self._rules = CompiledRules(schema)

    def prune(self, obj: Json) -> tuple[Json, list[str]]:
        """Return a copy without unknown fields, and the paths of those."""
        pruned, unknown = copy.deepcopy(obj), []
        implicit = {name: pruned.pop(name) for name in IMPLICIT if name in pruned}
        prune(pruned, self._schema, "", unknown)
        return implicit | pruned, unknown

    def default(self, obj: Json) -> Json:
        """Return a copy with defaults and without nulls of fields that are not nullable."""
        defaulted = copy.deepcopy(obj)
        default(defaulted, self._schema)
        return defaulted

    def validate(self, obj: Json, old: Json | None = None) -> list[Violation]:
        """Return the violations of a pruned and defaulted object; `old` is the replaced one, None if new."""
        found = [*value_violations(obj, self._schema, ""), *list_violations(obj, self._schema, "")]
        if any(violation.reason in BLOCKING for violation in found):
            return found
        return [*found, *self._rules.violations(obj, old)]
