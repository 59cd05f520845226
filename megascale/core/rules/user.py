"""The rules of a job: those of its `spec.logRules`, then the built-in ones, changed as it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import cast

from megascale.core.contract.patterns import LinearPattern
from megascale.core.contract.policy import LogRuleSpec
from megascale.core.rules.engine import RuleSet
from megascale.core.rules.model import HARDWARE, Action, Category, LogRule
from megascale.core.rules.table import BUILTIN


@lru_cache(maxsize=16)
def rule_set(added: tuple[LogRuleSpec, ...] = ()) -> RuleSet:
    """The rules that a job's lines are classified by.

    Patterns of the job are tried in their order before the built-in rules. Of several entries that change
    the same built-in rule the first counts.

    Raises:
        PatternError: a pattern is not taken; the manifest's validation refuses it before.
    """
    table = {rule.id: rule for rule in BUILTIN}
    changed: set[str] = set()
    for entry in added:
        for name in _targets(entry, table):
            if name not in changed:
                changed.add(name)
                table[name] = _changed(table[name], entry)
    patterns = [_pattern_rule(entry, entry.pattern) for entry in added if entry.pattern is not None]
    return RuleSet([*patterns, *table.values()])


def _targets(entry: LogRuleSpec, table: Mapping[str, LogRule]) -> list[str]:
    if entry.rule is not None:
        return [entry.rule] if entry.rule in table else []
    builtin = {rule.id: rule.category for rule in BUILTIN}
    return [name for name in table if entry.of_category is not None and builtin[name] == entry.of_category]


def _changed(rule: LogRule, entry: LogRuleSpec) -> LogRule:
    category = cast("Category", entry.category or rule.category)
    return replace(rule, category=category, action=cast("Action", entry.action or rule.action))


def _pattern_rule(entry: LogRuleSpec, text: str) -> LogRule:
    pattern = LinearPattern(text)
    return LogRule(
        id=entry.id,
        pattern=pattern,
        category=cast("Category", entry.category),
        action=cast("Action", entry.action),
        weight=HARDWARE + 1,
        min_level="debug",
        source="spec.logRules",
    )
