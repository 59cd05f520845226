"""The rules of a job come before the built-in ones, or change them."""

from __future__ import annotations

from pathlib import Path

import pytest

from megascale.core.contract.policy import LogRuleSpec
from megascale.core.rules import BUILTIN, classify_text, rule_set
from megascale.errors import ManifestError
from megascale.job import load_log_rules
from megascale.job.log_rules import log_rules

XID = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"


def read(tmp_path: Path, text: str) -> tuple[LogRuleSpec, ...]:
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    return log_rules(load_log_rules(file))


def test_a_pattern_wins_over_the_built_in_rules() -> None:
    ours = LogRuleSpec("ours", pattern="fallen +off", category="host", action="alert")
    verdict = classify_text(XID, rule_set((ours,)))
    assert (verdict.rule, verdict.category, verdict.action) == ("ours", "host", "alert")
    assert classify_text("all is well", rule_set((ours,))).rule is None


def test_the_first_pattern_wins(tmp_path: Path) -> None:
    added = read(
        tmp_path,
        "- {id: a, match: {pattern: '(?i)FALLEN'}, action: restart}\n"
        "- {id: b, match: {pattern: fallen}, action: fail_job}",
    )
    assert classify_text(XID, rule_set(added)).rule == "a"


def test_the_first_change_of_a_built_in_rule_counts() -> None:
    added = (
        LogRuleSpec("one", rule="xid-79", action="alert"),
        LogRuleSpec("two", of_category="gpu", action="none"),
        LogRuleSpec("three", rule="xid-95", category="host", action="restart"),
    )
    rules = rule_set(added)
    assert classify_text(XID, rules).action == "alert"
    verdict = classify_text("NVRM: Xid (PCI:0000:3b:00): 95, x", rules)
    assert (verdict.rule, verdict.category, verdict.action) == ("xid-95", "gpu", "none")
    assert len(rules.rules) == len(BUILTIN)


def test_what_a_file_leaves_out_is_filled_in(tmp_path: Path) -> None:
    added = read(
        tmp_path,
        "logRules:\n- {match: {pattern: on fire}, action: replace_node}\n"
        "- {match: {pattern: slow disk}, action: alert}\n- {match: {rule: xid-79}, class: benign}",
    )
    assert added == (
        LogRuleSpec("logRules[0]", pattern="on fire", category="host", action="replace_node"),
        LogRuleSpec("logRules[1]", pattern="slow disk", category="framework", action="alert"),
        LogRuleSpec("logRules[2]", rule="xid-79", category="benign"),
    )
    assert classify_text(XID, rule_set(added)).category == "benign"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text", 'got "text", expected a list of log rules, logRules: with one, or a TrainingJob'),
        ("- text", r"rules.yaml:1: logRules\[0\]: got \"text\", expected a section with match"),
        ("- {match: {pattern: x}}", r"logRules\[0\].action: is required, expected one of none, restart"),
        ("- {match: {pattern: x}, action: explode}", r'logRules\[0\].action: got "explode", expected one of'),
        ("- match: {pattern: x}\n  action: none\n  colour: 1", r'rules.yaml:3: .*unknown field "colour"'),
        (
            "- {match: {pattern: x, rule: xid-79}, action: none}",
            "expected exactly one of pattern, rule and class",
        ),
        ("- {match: {pattern: x}, action: no}", "can be read two ways"),
        ("rules: []", 'unknown field "rules"'),
        ("kind: TrainingJob\nspec: {}", "apiVersion: is required"),
    ],
)
def test_malformed_files_are_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read(tmp_path, text)
