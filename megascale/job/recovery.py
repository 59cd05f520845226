"""`spec.recovery`: how many restarts a job has, and exceptions to the recovery ladder."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megascale.core.contract.policy import LogCategory
from megascale.job.base import Natural, Problem, Section, Text, Words, did_you_mean, refuse
from megascale.job.log_rules import Pattern, pattern_problems

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


class OverrideMatch(Section):
    """Which incidents an override is for; every field that is given must match."""

    cause: Annotated[Annotated[str, Field(max_length=64)] | None, Words(f"one of {', '.join(CAUSES)}")] = None
    """Cause of the incident."""
    rule: Text | None = None
    """Name of the log rule, built-in or of spec.logRules, that recognised the hardware event or log line
    behind the incident."""
    category: Annotated[LogCategory | None, Field(alias="class")] = None
    """Class of that rule."""
    xid: Natural | None = None
    """NVIDIA XID of the hardware event behind the incident."""
    error_type: Text | None = None
    """Type of the exception that ended the rank, such as TypeError."""
    message: Pattern | None = None
    """Regular expression searched in the reason and the evidence of the incident, matched in linear time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if all(value is None for _, value in self):
            message = "is empty, so the override would be for every incident"
            refuse([Problem((), message, "give at least one field")])
        problems = pattern_problems(("message",), self.message)
        if self.cause is not None and self.cause not in CAUSES:
            known = f"expected one of {', '.join(CAUSES)}"
            problems.append(
                Problem(("cause",), f'got "{self.cause}", {known}', did_you_mean(self.cause, CAUSES))
            )
        refuse(problems)
        return self


class Override(Section):
    """An exception to the recovery ladder."""

    match: OverrideMatch
    """Which incidents the override is for."""
    action: Literal["restart_in_place", "restart_container", "replace_node", "roll_back", "fail_job"]
    """What is done about them instead of what the ladder would choose."""


class Recovery(Section):
    """How far automation goes before the job fails."""

    max_restarts: Natural = 100
    """Restarts over the whole job before it fails."""
    budgets: Annotated[
        dict[str, Natural], Field(max_length=16), Words("a mapping from cause to a whole number >= 0")
    ] = Field(default_factory=dict)
    """Restarts by cause before the job fails; causes: crash, user_code, hang, node_lost, hardware, straggler,
    numerics, checkpoint_corrupt, launch_failed."""
    overrides: Annotated[list[Override], Field(max_length=64)] = Field(default_factory=list)
    """Exceptions to the recovery ladder: incidents that match, and the action for them. The first match
    wins."""

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
        refuse(problems)
        return self
