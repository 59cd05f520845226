"""`spec.logRules`: what lines of a job's logs mean, ahead of the built-in rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Self, get_args

from pydantic import ConfigDict, Field, model_validator

from megascale.core.contract.patterns import MAX_PATTERN, LinearPattern, PatternError
from megascale.core.contract.policy import (
    MACHINE_CLASSES,
    UNTABLED_RULES,
    LogAction,
    LogCategory,
    LogRuleSpec,
)
from megascale.job.base import Problem, Section, Text, Words, did_you_mean, refuse

MAX_LOG_RULES: Final = 64
LOG_RULES: Final = "logRules"
Pattern = Annotated[
    str,
    Field(min_length=1, max_length=MAX_PATTERN),
    Words(f"a regular expression of 1 to {MAX_PATTERN} characters without backreferences or lookaround"),
]
LogRuleId = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=63),
    Words("up to 63 letters, digits, hyphens, dots and underscores, first and last a letter or digit"),
]
_SYNTAX: Final = "use RE2's syntax, which has no backreferences and no lookaround"
_ACTIONS: Final[tuple[LogAction, ...]] = get_args(LogAction)
_EXACTLY_ONE: Final[dict[str, Any]] = {
    "oneOf": [{"required": [name]} for name in ("pattern", "rule", "class")]
}


def pattern_problems(path: tuple[str | int, ...], pattern: str | None) -> list[Problem]:
    """A problem at `path` if RE2 refuses `pattern`."""
    if pattern is None:
        return []
    try:
        LinearPattern(pattern)
    except PatternError as error:
        return [Problem(path, f'"{pattern}" {error}', _SYNTAX)]
    return []


class LogMatch(Section):
    """Which lines a log rule is for: exactly one of pattern, rule and class."""

    model_config = ConfigDict(json_schema_extra=_EXACTLY_ONE)

    pattern: Pattern | None = None
    """Regular expression searched in a line, after its prefixes (time, host, level, rank), in the syntax of
    RE2, which has no backreferences and no lookaround."""
    rule: Text | None = None
    """Name of a built-in rule whose class or action is changed; `megascale analyze rules` lists them."""
    category: Annotated[LogCategory | None, Field(alias="class")] = None
    """Class of the built-in rules whose class or action is changed."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [name for name, value in self.model_dump(by_alias=True).items() if value is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are given" if given else "is empty"
            refuse([Problem((), f"{found}, expected exactly one of pattern, rule and class")])
        refuse(pattern_problems(("pattern",), self.pattern))
        return self


class LogRule(Section):
    """What a line of a log means."""

    id: LogRuleId | None = None
    """Name of the rule in incidents, alerts and recovery.overrides; null = logRules[<position>]."""
    match: LogMatch
    """Which lines the rule is for."""
    category: Annotated[LogCategory | None, Field(alias="class")] = None
    """What the line is about; benign = nothing. null = the built-in rule's class; for a pattern host with
    action replace_node, else framework."""
    action: LogAction | None = None
    """none: the line is ignored; alert: it is reported (network alerts that recur also replace the node);
    restart: it is the cause of an exit or a stall of the same node within spec.detection.correlation;
    replace_node: the node is replaced at once, for class gpu, network, storage or host; fail_job: an exit
    before the first step fails the job. null = the built-in rule's action; required for a pattern."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.action is None and (self.category is None or self.match.pattern is not None):
            problems.append(Problem(("action",), f"is required, expected one of {', '.join(_ACTIONS)}"))
        known = _builtin_rules() if self.match.rule is not None else {}
        if self.match.rule is not None and self.match.rule not in known:
            hint = did_you_mean(self.match.rule, known) or "`megascale analyze rules` lists them"
            problems.append(Problem(("match", "rule"), f'"{self.match.rule}" is not a built-in rule', hint))
        acts_on = self.meaning or known.get(self.match.rule or "", "host")
        if self.action == "replace_node" and acts_on not in MACHINE_CLASSES:
            expected = f"expected one of {', '.join(MACHINE_CLASSES)}"
            message = f"{acts_on} does not go with action replace_node, {expected}"
            problems.append(Problem(("class",), message, "another node does not cure what no node has"))
        refuse(problems)
        return self

    @property
    def meaning(self) -> LogCategory | None:
        """The class of the lines that are matched; None = that of the built-in rule named in `match`."""
        if self.category is not None or self.match.pattern is None:
            return self.category or self.match.category
        return "host" if self.action == "replace_node" else "framework"


class LogRuleFile(Section):
    """A file of log rules, for `megascale analyze`."""

    log_rules: Annotated[list[LogRule], Field(max_length=MAX_LOG_RULES)]
    """The rules in the order in which they are tried."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(id_problems(self.log_rules))
        return self


def id_problems(rules: Sequence[LogRule]) -> list[Problem]:
    """Names that two rules have."""
    names = [rule.id for rule in rules]
    return [
        Problem((LOG_RULES, index, "id"), f"{name} is the name of another rule", "choose another name")
        for index, name in enumerate(names)
        if name is not None and name in names[:index]
    ]


def log_rules(rules: Sequence[LogRule]) -> tuple[LogRuleSpec, ...]:
    """The rules as agents, driver and `megascale analyze` apply them."""
    return tuple(
        LogRuleSpec(
            id=_name(rule, index),
            pattern=rule.match.pattern,
            rule=rule.match.rule,
            of_category=rule.match.category,
            category=rule.meaning if rule.match.pattern else rule.category,
            action=rule.action,
        )
        for index, rule in enumerate(rules)
    )


def named_rule_problem(name: str, rules: Sequence[LogRule]) -> tuple[str, str] | None:
    """Message and hint if no incident of a job with these log rules can have a rule called `name`."""
    names = {_name(rule, index): rule for index, rule in enumerate(rules)}
    if (rule := names.get(name)) is not None and rule.match.pattern is not None:
        return None
    known = _builtin_rules()
    if name in known or name in UNTABLED_RULES:
        return None
    if rule is not None:
        message = f'"{name}" changes built-in rules, which keep their names'
        return message, f"use {rule.match.rule}" if rule.match.rule else f"use class: {rule.match.category}"
    patterns = [key for key, each in names.items() if each.match.pattern is not None]
    hint = did_you_mean(name, [*patterns, *known, *UNTABLED_RULES])
    message = f'"{name}" is neither a built-in rule nor one of spec.logRules'
    return message, hint or "`megascale analyze rules` lists the built-in ones"


def _name(rule: LogRule, index: int) -> str:
    return rule.id or f"{LOG_RULES}[{index}]"


def _builtin_rules() -> dict[str, LogCategory]:
    """Class of each built-in rule, by its name."""
    # Imported here: compiling the built-in rules takes 0.1 s, and few manifests name one.
    from megascale.core.rules import BUILTIN

    return {rule.id: rule.category for rule in BUILTIN if rule.category != "unknown"}
