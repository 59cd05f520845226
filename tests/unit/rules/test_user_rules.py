"""Rules of the user come first, change the built-in table, and are checked."""

from __future__ import annotations

from typing import Any

import pytest

from megascale.core.rules import BUILTIN, build_rules, classify_text
from megascale.errors import InputError

XID = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"


def test_pattern_rule_wins_over_builtin() -> None:
    rules = build_rules(
        [{"id": "ours", "match": {"pattern": "fallen off"}, "class": "host", "action": "alert"}], BUILTIN
    )
    verdict = classify_text(XID, rules)
    assert (verdict.rule, verdict.category, verdict.action) == ("ours", "host", "alert")


def test_first_override_of_a_rule_wins() -> None:
    rules = build_rules(
        [{"match": {"rule": "xid-79"}, "action": "alert"}, {"match": {"class": "gpu"}, "action": "none"}],
        BUILTIN,
    )
    assert classify_text(XID, rules).action == "alert"
    assert classify_text("NVRM: Xid (PCI:0000:3b:00): 95, x", rules).action == "none"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", r"rules\[0\]: expected a mapping"),
        ({"match": {"rule": "xid-79"}}, "`action` is missing"),
        ({"match": {"rule": "nope"}, "action": "none"}, "no rule 'nope'"),
        ({"match": {"pattern": "("}, "action": "none"}, "not a regular expression"),
        ({"match": {"pattern": "x"}, "action": "explode"}, "'explode' is not one of none, restart"),
        ({"match": {"pattern": "x", "rule": "xid-79"}, "action": "none"}, "exactly one of"),
        ({"match": {"pattern": "x"}, "action": "none", "colour": 1}, "unknown key 'colour'"),
        ({"match": {"class": "weather"}, "action": "none"}, "'weather' is not one of user_code"),
    ],
)
def test_malformed_entries_are_refused(entry: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_rules([entry], BUILTIN, where="rules")
