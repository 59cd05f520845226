"""`spec.recovery`: how many restarts a job has, and exceptions to the recovery ladder."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from megascale.core.contract.policy import LogCategory
from megascale.core.contract.vocabulary import Cause
from megascale.job.base import Count, Natural, Problem, Seconds, Section, Text, Words, did_you_mean, refuse
from megascale.job.log_rules import Pattern, pattern_problems

_NO_RESTARTS: Final = frozenset({Cause.MANUAL, Cause.PLANNED, Cause.SLOW})
CAUSES: Final = tuple(cause.value for cause in Cause if cause not in _NO_RESTARTS)
"""Causes of restarts that `recovery` can be tuned by."""


class OverrideMatch(Section):
    """Which incidents an override is for; every field that is given must match."""

    cause: Annotated[Annotated[str, Field(max_length=64)] | None, Words(f"one of {', '.join(CAUSES)}")] = None
    """Cause of the incident."""
    rule: Text | None = None
    """Name of the log rule, built-in or with a pattern of spec.logRules, that recognised the hardware event
    or log line behind the incident; python-exception for a traceback that no rule knows, node-checks for a
    node that computed wrong numbers in the diagnosis."""
    category: Annotated[LogCategory | None, Field(alias="class")] = None
    """Class of that rule."""
    xid: Natural | None = None
    """NVIDIA XID of the hardware event behind the incident."""
    error_type: Text | None = None
    """Type of the exception that ended the rank, such as TypeError."""
    message: Pattern | None = None
    """Regular expression searched in the reason and the evidence of the incident, in the syntax of RE2."""

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
    """Action taken for them instead of the one that the ladder would choose."""


class Recovery(Section):
    """Limits and times of automatic recovery, and exceptions to the recovery ladder."""

    max_restarts: Natural = 100
    """Restarts over the whole job; one more failure fails the job."""
    budgets: Annotated[
        dict[str, Natural], Field(max_length=16), Words("a mapping from cause to a whole number >= 0")
    ] = Field(default_factory=dict)
    """Restarts by cause; one more failure of that cause fails the job. Causes: crash, user_code, hang,
    node_lost, hardware, straggler, numerics, checkpoint_corrupt, launch_failed."""
    no_progress_limit: Count = 3
    """Failures in a row at the same step, or three times as many without a new step, that fail the job. Of a
    script that reports no steps: failures in a row within minimumRunSeconds of a start, or three times as
    many with the same error."""
    minimum_run_seconds: Seconds = 5
    """A script that reports no steps failed at its start if it ended sooner than this; noProgressLimit says
    how often in a row it may."""
    backoff_limit_seconds: Annotated[int, Field(ge=0, le=3600)] = 30
    """The first restart after progress follows at once. Each one after it waits a random part of a time that
    begins at 1 s, doubles, and is at most this long; 0 = never wait. A step that was not completed before, or
    10 minutes without a failure of a script that reports no steps, counts as progress."""
    node_request_tries: Count = 60
    """Unsuccessful requests for nodes in a row that fail the job. A refused request is repeated after 5 s,
    later after up to a minute; one that brings no node counts as unsuccessful after health.startupSeconds."""
    shrink_after_seconds: Annotated[int, Field(ge=0, le=86_400)] = 60
    """A job that lacks nodes waits this long for them before it runs on fewer, never below minNodes."""
    grow_after_seconds: Annotated[int, Field(ge=0, le=604_800)] = 600
    """A job that runs on fewer nodes restarts on all of them when they have been there for this long."""
    container_restart_seconds: Annotated[int, Field(ge=1, le=604_800)] = 600
    """A node's container is restarted at most once in this time; other restarts are of the ranks alone."""
    apply_within_seconds: Annotated[int, Field(ge=1, le=604_800)] = 86_400
    """A changed spec that needs a restart is applied at the next one, at the latest after this time."""
    kill_seconds: Seconds = 10
    """A node whose processes have not ended this long after SIGKILL is replaced: they are stuck in the
    kernel."""
    node_failures_per_day: Annotated[float, Field(gt=0, le=1)] = 0.0038
    """Expected failures of one node per day. spareNodes auto and, until the job has counted failures of its
    own, checkpoint.cadence auto are computed from it. The default was observed in the training of Llama 3
    (arXiv 2407.21783)."""
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
