"""CEL rules for `spec.detection`, `spec.recovery` and `spec.logRules`, equivalent to their pydantic checks.

Two checks have no CEL rule; the operator reports their failure with condition SpecValid of the job. They
concern regular expressions, whose compilation error CEL cannot catch, and names of built-in log rules, of
which there are too many for a schema.
"""

from __future__ import annotations

from typing import Final

from megascale.core.api import MACHINE_CLASSES
from megascale.job.api import CAUSES
from megascale_operator.crd.cel_rule import CelRule, implies, texts

_CAUSE_LIST: Final = ", ".join(CAUSES)
_MATCH_FIELDS: Final = ("cause", "rule", "class", "xid", "errorType", "message")
_MACHINES: Final = texts(MACHINE_CLASSES)

SHADOW: Final = [CelRule("!('all' in self) || size(self) == 1", "all includes the others: give it alone")]
RECOVERY: Final = [
    CelRule(
        f"self.budgets.all(cause, cause in {texts(CAUSES)})",
        f"budgets are by cause: {_CAUSE_LIST}",
        ".budgets",
    )
]
OVERRIDE_MATCH: Final = [
    CelRule(
        f"!has(self.cause) || self.cause in {texts(CAUSES)}",
        f"cause must be one of {_CAUSE_LIST}",
        ".cause",
    ),
    CelRule(
        " || ".join(f"has(self.{field})" for field in _MATCH_FIELDS),
        "at least one field must be given, else the override would be for every incident",
    ),
]
LOG_RULE: Final = [
    CelRule(
        "has(self.action) || (has(self.class) && !has(self.match.pattern))",
        "action is required for a pattern, and where class is not given",
        ".action",
        "FieldValueRequired",
    ),
    CelRule(
        implies(
            "has(self.action) && self.action == 'replace_node'",
            f"has(self.class) ? self.class in {_MACHINES}"
            f" : !has(self.match.class) || self.match.class in {_MACHINES}",
        ),
        f"action replace_node goes with class {', '.join(MACHINE_CLASSES)}",
        ".class",
    ),
]
LOG_RULE_IDS: Final = CelRule(
    "self.logRules.all(one, !has(one.id)"
    " || self.logRules.exists_one(other, has(other.id) && other.id == one.id))",
    "each id of a log rule can be given once",
    ".logRules",
)
