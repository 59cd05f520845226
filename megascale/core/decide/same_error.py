"""Errors that come on several nodes, or again and again: configuration or code, and no node's fault."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace
from itertools import takewhile
from typing import Final

from megascale.core.contract.vocabulary import Cause
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault
from megascale.core.state.record import Incident

_LINE: Final = 300
_PREFIX: Final = re.compile(r"^\[(?:rank|default)\s?\d*\]:\s*")
_VARIES: Final = re.compile(r"0x[0-9a-f]+|\d+")
_WORN: Final = 3
_NOT_OF_THE_JOB: Final = frozenset({"gpu", "network", "storage", "oom"})


def error_name(text: str) -> str:
    """A short name of the error in `text`, equal for texts that differ in numbers and rank; "" for none."""
    line = _PREFIX.sub("", text.strip().partition("\n")[0][:_LINE].lower())
    return f"{zlib.crc32(_VARIES.sub('#', line).encode()):08x}" if line else ""


def shared_error(fault: Fault, nodes: tuple[str, ...]) -> Fault:
    """`fault` as one of all these nodes and of none of them."""
    return replace(
        fault,
        cause=Cause.USER_CODE,
        reason=f"the same error on {' and '.join(nodes)}: {fault.reason}",
        node=None,
        blameless=True,
        everywhere=True,
    )


def seen_elsewhere(ctx: StepContext, fault: Fault) -> Fault:
    """`fault`, as a shared error if the failures just before it had the same on another node."""
    before = _before(ctx, fault)
    others = dict.fromkeys(i.node for i in before if i.node not in (None, fault.node))
    if fault.node is None or not (others or any(i.node is None for i in before)):
        return fault
    return shared_error(fault, (*(node for node in others if node), fault.node))


def repeated_error(ctx: StepContext, fault: Fault) -> str | None:
    """Why a script that reports no steps, and always ends with the same error, is not started again."""
    again = len(_before(ctx, fault))
    if ctx.steps_are_known() or again < _WORN * ctx.policy.no_progress_limit:
        return None
    return f"{again} restarts in a row ended with the same error"


def fails_wherever_it_runs(ctx: StepContext, fault: Fault) -> bool:
    """Whether a shared error ended the job before it did any work.

    What the network, the storage or the devices do to several nodes at once passes.
    """
    worked = ctx.record.best_step > 0 or ctx.ran_s() >= ctx.policy.startup_s
    return not worked and (fault.action == "fail_job" or fault.category not in _NOT_OF_THE_JOB)


def _before(ctx: StepContext, fault: Fault) -> list[Incident]:
    """The newest incidents in a row with the same error, without progress since; not the open one."""
    record = ctx.record
    stale = record.failures_in_row == 0 if ctx.steps_are_known() else ctx.ran_s() >= ctx.policy.startup_s
    if not fault.error or stale:
        return []
    known = [*record.incidents, *([record.incident] if record.incident else [])]
    current = record.incident is not None and record.incident.attempt == record.attempt
    earlier = known[:-1] if current else known
    return list(takewhile(lambda incident: incident.error == fault.error, reversed(earlier)))
