"""Log rules: patterns over log lines, kernel messages and driver events, with their class and action."""

from __future__ import annotations

from megascale.core.rules.correlate import HardwareIncident, RuleMatch, correlate
from megascale.core.rules.engine import LineClassifier, RuleSet, classify_text, outweighs
from megascale.core.rules.model import ACTIONS, CATEGORIES, Action, Category, LogRule, Scope, Verdict
from megascale.core.rules.prefilter import LinePrefilter, prefilter_of
from megascale.core.rules.records import RecordVerdict, classify_records
from megascale.core.rules.table import BUILTIN
from megascale.core.rules.user import rule_set

__all__ = [
    "ACTIONS",
    "BUILTIN",
    "CATEGORIES",
    "Action",
    "Category",
    "HardwareIncident",
    "LineClassifier",
    "LinePrefilter",
    "LogRule",
    "RecordVerdict",
    "RuleMatch",
    "RuleSet",
    "Scope",
    "Verdict",
    "classify_records",
    "classify_text",
    "correlate",
    "outweighs",
    "prefilter_of",
    "rule_set",
]
