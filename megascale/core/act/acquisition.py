"""Notes that nodes which were asked for did not come, asks again after a back-off, and gives up at last."""

from __future__ import annotations

from typing import Final

from megascale.core.act.lifecycle import finish
from megascale.core.contract import effects as fx
from megascale.core.contract.vocabulary import FinishState, Timer
from megascale.core.state.context import StepContext
from megascale.core.state.record import JobState, shortened

RETRY_S: Final = 5.0
"""Nodes are asked for again after this time, and after ever longer ones while nothing comes of it."""
_RETRY_LIMIT_S: Final = 60.0
_DOUBLINGS: Final = 6


def not_acquired(ctx: StepContext, count: int, reason: str, page: str = "the fleet refused a node") -> None:
    """Nothing came of a request for `count` nodes: ask again after a back-off.

    The job fails after `acquire_tries` such requests in a row while it waits for nodes.

    Args:
        page: what a person is told the first time, before the reason.
    """
    record, reason = ctx.record, shortened(reason)
    record.outstanding = max(0, record.outstanding - count)
    record.refusals += 1
    if record.refusals == 1:
        ctx.emit(fx.Page, f"{page}: {reason}")
    if record.state is not JobState.ASSEMBLING:
        record.refusals = min(record.refusals, ctx.policy.acquire_tries // 2)
    elif record.refusals >= ctx.policy.acquire_tries:
        why = f"no nodes after {record.refusals} tries: {reason}"
        ctx.emit(fx.Page, f"job fails: {why}")
        finish(ctx, FinishState.FAILED, why)
        return
    delay = min(_RETRY_LIMIT_S, RETRY_S * 2 ** min(max(record.refusals - 1, 0), _DOUBLINGS))
    ctx.set_deadline(Timer.ACQUIRE_RETRY, delay)


def died_before_joining(ctx: StepContext, reason: str) -> None:
    """A node that was asked for ended before it joined; those of one request count as one try."""
    record = ctx.record
    if not record.outstanding:
        return
    if Timer.ACQUIRE_RETRY in record.deadlines:
        record.outstanding -= 1
    else:
        not_acquired(ctx, 1, reason, "a node ended before it joined")
