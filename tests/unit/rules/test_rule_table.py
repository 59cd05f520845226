"""Every rule is hit by its own example, through the whole engine."""

from __future__ import annotations

import pytest

from megascale.core.rules import ACTIONS, BUILTIN, CATEGORIES, LogRule, RuleSet, classify_text

RULES = RuleSet(BUILTIN)


@pytest.mark.parametrize("rule", BUILTIN, ids=lambda rule: rule.id)
def test_example_hits_its_rule(rule: LogRule) -> None:
    verdict = classify_text(rule.example, RULES)
    assert verdict.rule == rule.id
    assert (verdict.category, verdict.action, verdict.scope) == (rule.category, rule.action, rule.scope)


def test_rules_are_complete_and_distinct() -> None:
    assert len({rule.id for rule in BUILTIN}) == len(BUILTIN)
    for rule in BUILTIN:
        assert rule.category in CATEGORIES
        assert rule.action in ACTIONS
        assert rule.source, rule.id
        assert rule.words, rule.id
        assert all(word == word.lower() for word in rule.words), rule.id
        assert rule.category != "benign" or rule.action == "none", rule.id
