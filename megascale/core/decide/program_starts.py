"""Whether a script that reports no steps ended because its program cannot begin at all."""

from __future__ import annotations

from typing import Final

from megascale.core.contract.patterns import linear_pattern
from megascale.core.state.context import StepContext
from megascale.core.state.incidents import Fault

_CANNOT_BEGIN: Final = linear_pattern(
    r"can't open file|\b(?:SyntaxError|IndentationError|TabError|ModuleNotFoundError|ImportError)\b"
    r"|error: (?:unrecognized arguments|the following arguments are required|argument )"
)


def never_begins(ctx: StepContext, fault: Fault) -> bool:
    """Whether the interpreter, an import or the command line refused, within the time of a start.

    A rank that was killed, or lost its peers, did begin: what its log has is of a program that it started.
    """
    if not fault.error:
        return False
    text = "\n".join((fault.reason, *fault.evidence))
    return ctx.ran_s() < ctx.policy.startup_s and _CANNOT_BEGIN.search(text)
