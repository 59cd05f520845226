"""`spec.recovery`: how far automation goes, and exceptions to its rules."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megascale.job.base import Natural, Problem, Section, Text, Words, did_you_mean, refuse

CAUSES = (
    "crash",
    "user_code",
    "hang",
    "node_lost",
    "hardware",
    "straggler",
    "numerics",
    "checkpoint_corrupt",
    "launch_failed",
)
"""Causes of restarts that `recovery` can be tuned by."""


class RuleMatch(Section):
    """Which incidents a rule is for; every field that is given must match."""

    cause: Annotated[Annotated[str, Field(max_length=64)] | None, Words(f"one of {', '.join(CAUSES)}")] = None
    """Cause of the incident."""
    rule: Text | None = None
    """Name of the rule that recognised the hardware event or log line behind it."""
    category: Text | None = None
    """Category of that rule."""
    xid: Natural | None = None
    """NVIDIA XID of the hardware event behind it."""
    error_type: Text | None = None
    """Type of the exception in the rank's last words, such as TypeError."""
    message: Annotated[
        Annotated[str, Field(min_length=1, max_length=1024)] | None, Words("a regular expression")
    ] = None
    """Regular expression found in the reason of the incident."""


class Rule(Section):
    """An exception to the recovery ladder."""

    match: RuleMatch
    """Which incidents the rule is for."""
    action: Literal["restart_in_place", "restart_container", "replace_node", "roll_back", "fail_job"]
    """The rung of the ladder to take."""


class Recovery(Section):
    """How far automation goes before the job fails."""

    max_restarts: Natural = 100
    """Restarts over the whole job before it fails."""
    budgets: Annotated[
        dict[str, Natural], Field(max_length=16), Words("a mapping from cause to a whole number >= 0")
    ] = Field(default_factory=dict)
    """Restarts by cause before the job fails; causes: crash, user_code, hang, node_lost, hardware, straggler,
    numerics, checkpoint_corrupt, launch_failed."""
    rules: Annotated[list[Rule], Field(max_length=64)] = Field(default_factory=list)
    """Exceptions to the recovery ladder; the first match wins."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = f"expected one of {', '.join(CAUSES)}"
        problems = [
            Problem(
                ("budgets", cause), f'"{cause}" is no cause of restarts, {known}', did_you_mean(cause, CAUSES)
            )
            for cause in self.budgets
            if cause not in CAUSES
        ]
        for index, rule in enumerate(self.rules):
            cause = rule.match.cause
            if cause is not None and cause not in CAUSES:
                path = ("rules", index, "match", "cause")
                problems.append(Problem(path, f'got "{cause}", {known}', did_you_mean(cause, CAUSES)))
            problems += _match_problems(("rules", index, "match"), rule.match)
        refuse(problems)
        return self


def _match_problems(path: tuple[str | int, ...], match: RuleMatch) -> list[Problem]:
    if all(value is None for _, value in match):
        return [Problem(path, "is empty, so the rule would be for every incident", "give at least one field")]
    try:
        re.compile(match.message or "")
    except re.error as error:
        return [Problem((*path, "message"), f'"{match.message}" is not a regular expression: {error}')]
    return []
