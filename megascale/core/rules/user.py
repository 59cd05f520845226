"""Rules of the user: a list of `{match: {...}, class, action}`; the first match wins over the built-in ones.

`match` holds either `pattern` (a regular expression, searched in the message), or `rule` (id of a built-in
rule) or `class`, to change what the built-in table says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from megascale.core.rules.engine import RuleSet
from megascale.core.rules.model import ACTIONS, CATEGORIES, HARDWARE, Action, Category, LogRule
from megascale.errors import InputError

_KEYS: Final = {"id", "match", "class", "action"}
_MATCH_KEYS: Final = {"pattern", "rule", "class"}


def build_rules(
    user: Sequence[Mapping[str, Any]], builtin: Sequence[LogRule], *, where: str = "recovery.rules"
) -> RuleSet:
    """The user's rules before the built-in ones.

    Args:
        where: named in errors.

    Raises:
        InputError: an entry is malformed, names an unknown rule, class or action, or its pattern is invalid.
    """
    added: list[LogRule] = []
    table = {rule.id: rule for rule in builtin}
    changed: set[str] = set()
    for index, entry in enumerate(user):
        path = f"{where}[{index}]"
        match, category, action = _read(entry, path)
        if "pattern" in match:
            added.append(_pattern_rule(entry, match["pattern"], category, action, path))
            continue
        targets = _targets(match, table, path)
        for identifier in targets:
            if identifier not in changed:
                old = table[identifier]
                table[identifier] = replace(
                    old, category=category or old.category, action=action or old.action
                )
                changed.add(identifier)
    return RuleSet([*added, *table.values()])


def _read(entry: object, path: str) -> tuple[Mapping[str, Any], Category | None, Action | None]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("match"), Mapping):
        raise InputError(f"{path}: expected a mapping with `match` and `action`, got {entry!r}")
    unknown = sorted(set(entry) - _KEYS)
    if unknown:
        raise InputError(f"{path}: unknown key {unknown[0]!r}; allowed are {', '.join(sorted(_KEYS))}")
    match = entry["match"]
    if len(match) != 1 or not set(match) <= _MATCH_KEYS:
        raise InputError(
            f"{path}.match: exactly one of pattern, rule, class is expected, got {sorted(match)}"
        )
    if "action" not in entry and "class" not in entry:
        raise InputError(f"{path}: `action` is missing; one of {', '.join(ACTIONS)}")
    action = _one_of(entry.get("action"), ACTIONS, f"{path}.action")
    category = _one_of(entry.get("class"), CATEGORIES, f"{path}.class")
    return match, cast("Category | None", category), cast("Action | None", action)


def _one_of(value: object, allowed: Sequence[str], path: str) -> str | None:
    if value is not None and value not in allowed:
        raise InputError(f"{path}: {value!r} is not one of {', '.join(allowed)}")
    return cast("str | None", value)


def _pattern_rule(
    entry: Mapping[str, Any], pattern: object, category: Category | None, action: Action | None, path: str
) -> LogRule:
    try:
        compiled = re.compile(str(pattern))
    except re.error as error:
        raise InputError(f"{path}.match.pattern: {pattern!r} is not a regular expression: {error}") from error
    return LogRule(
        id=str(entry.get("id", path)),
        pattern=compiled,
        category=category or "framework",
        action=action or "none",
        weight=HARDWARE + 1,
        min_level="debug",
        source=path,
    )


def _targets(match: Mapping[str, Any], table: Mapping[str, LogRule], path: str) -> list[str]:
    if "rule" in match:
        identifier = str(match["rule"])
        if identifier not in table:
            raise InputError(
                f"{path}.match.rule: no rule {identifier!r}; `megascale analyze rules` lists them"
            )
        return [identifier]
    category = _one_of(match["class"], CATEGORIES, f"{path}.match.class")
    return [rule.id for rule in table.values() if rule.category == category]
