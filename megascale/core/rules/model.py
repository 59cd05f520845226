"""Types of log rules and of what they find. Within a line the first rule that matches wins; between the lines
of a record the match with the highest weight does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, get_args

from megascale.core.contract.policy import LogAction, LogCategory

Category: TypeAlias = LogCategory | Literal["unknown"]
Action: TypeAlias = LogAction
Scope = Literal["cause", "consequence"]
Level = Literal["debug", "info", "warning", "error"]

CATEGORIES: Final[tuple[Category, ...]] = (*get_args(LogCategory), "unknown")
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
LEVELS: Final[tuple[Level, ...]] = get_args(Level)

# Weights: of the matches in one record, the one with the highest weight counts.
HARDWARE: Final = 90  # reported by the kernel or the device driver
DEVICE: Final = 70  # a device or file system call failed
EXCEPTION: Final = 60  # an exception that ended a process
PEER: Final = 45  # a peer closed the connection; its own log may name the cause
SYMPTOM: Final = 20  # messages of a shutdown that something else caused
UNEXPLAINED: Final = 1  # looks like an error, and no rule says which
NOTE: Final = 0


class Pattern(Protocol):
    """A regular expression: a `re.Pattern`, or a `LinearPattern` where a user wrote it."""

    @property
    def pattern(self) -> str: ...

    def search(self, text: str, /) -> object:
        """Truthy where the pattern is found."""


@dataclass(frozen=True, slots=True)
class LogRule:
    """One pattern and what it means.

    Attributes:
        id: stable name, unique in a rule set.
        pattern: searched in the message (prefixes such as time, host and level are cut off).
        category: what the line is about; `class` in manifests and JSON.
        scope: whether the line states a cause, or something that follows from another fault.
        weight: of the matches in one record, the one with the highest weight counts.
        min_level, max_level: the rule does not apply to lines that state a lower or a higher level.
        program: the rule applies only to lines whose prefix names this program.
        words: lower case; one of them must be in the line before the pattern is tried; () = always tried.
        unless: the rule does not apply where this is found.
        source: documentation or study that the rule is taken from.
        advice: what to do about it, for people.
        example: a line that must match this rule.
    """

    id: str
    pattern: Pattern
    category: Category
    action: Action
    scope: Scope = "cause"
    weight: int = DEVICE
    min_level: Level = "warning"
    max_level: Level = "error"
    program: re.Pattern[str] | None = None
    words: tuple[str, ...] = ()
    unless: re.Pattern[str] | None = None
    source: str = ""
    advice: str = ""
    example: str = ""


def log_rule(
    identifier: str,
    pattern: str,
    meaning: tuple[Category, Action],
    *,
    words: str,
    source: str,
    example: str,
    scope: Scope = "cause",
    weight: int = DEVICE,
    min_level: Level = "warning",
    max_level: Level = "error",
    program: str | None = None,
    unless: str | None = None,
    advice: str = "",
) -> LogRule:
    """A built-in rule; `words` are separated by `|`, patterns ignore case."""
    return LogRule(
        id=identifier,
        pattern=re.compile(pattern, re.IGNORECASE),
        category=meaning[0],
        action=meaning[1],
        scope=scope,
        weight=weight,
        min_level=min_level,
        max_level=max_level,
        program=re.compile(program) if program else None,
        words=tuple(words.split("|")),
        unless=re.compile(unless, re.IGNORECASE) if unless else None,
        source=source,
        advice=advice,
        example=example,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result for a line or a record; `rule` is None if no rule matched.

    Attributes:
        node: where it happened, if the line names it.
        peer: the other end of a connection that the line names; it may be at fault.
        line: the line that matched.
    """

    category: Category = "benign"
    action: Action = "none"
    rule: str | None = None
    scope: Scope = "cause"
    weight: int = NOTE
    node: str | None = None
    peer: str | None = None
    rank: int | None = None
    line: str = ""
