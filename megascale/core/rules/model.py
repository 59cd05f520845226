"""What a rule is. First match wins within a line; between the lines of a record the weight decides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias, get_args

from megascale.core.contract.policy import LogAction, LogCategory

Category: TypeAlias = LogCategory
Action: TypeAlias = LogAction
Scope = Literal["cause", "consequence"]
Level = Literal["debug", "info", "warning", "error"]

CATEGORIES: Final[tuple[Category, ...]] = get_args(Category)
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
LEVELS: Final[tuple[Level, ...]] = get_args(Level)

# Weights: which line of a record explains the others.
HARDWARE: Final = 90  # the machine says so itself
DEVICE: Final = 70  # a device or file system call failed
EXCEPTION: Final = 60  # an exception that ended a process
PEER: Final = 45  # a peer went away: it may have had a reason of its own
SYMPTOM: Final = 20  # tear-down after something else
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
        category: the `class` of contracts and JSON.
        scope: a consequence never outweighs a cause.
        weight: explains lines of lower weight in the same record.
        min_level: lines that state a lower level themselves are left alone.
        words: lower case; one of them must be in the line before the pattern is tried; () = always tried.
        unless: the rule does not apply where this is found.
        source: where the fact comes from.
        example: a line that must hit this rule.
    """

    id: str
    pattern: Pattern
    category: Category
    action: Action
    scope: Scope = "cause"
    weight: int = DEVICE
    min_level: Level = "warning"
    words: tuple[str, ...] = ()
    unless: re.Pattern[str] | None = None
    source: str = ""
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
    unless: str | None = None,
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
        words=tuple(words.split("|")),
        unless=re.compile(unless, re.IGNORECASE) if unless else None,
        source=source,
        example=example,
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a line or record means; `rule` None = nothing known, benign.

    Attributes:
        node: where it happened, where the line tells.
        peer: the other end of a connection: not where it happened, but perhaps at fault.
        line: the line that decided.
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
