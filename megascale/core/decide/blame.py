"""How much a node is to blame: a score that decays, and lemons, whose incidents keep coming back."""

from __future__ import annotations

import math
from typing import Final

from megascale.core.contract.vocabulary import Cause
from megascale.core.decide.breakers import HOUR_S
from megascale.core.state.context import StepContext
from megascale.core.state.record import Blame

WEIGHTS: Final = {
    Cause.CRASH: 1.0,
    Cause.HANG: 1.0,
    Cause.NODE_LOST: 1.0,
    Cause.LAUNCH_FAILED: 1.5,
    Cause.HARDWARE: 1.0,
    Cause.STRAGGLER: 3.0,
    Cause.USER_CODE: 0.5,
}
"""Blame by cause. Checkpoints, people and wrong numbers of unknown origin are no node's fault; code is not
either, but errors that keep coming from one node only, at different steps, are not the code's."""


def blame_of(ctx: StepContext, node: str) -> float:
    """Blame of a node now, after decay."""
    blame = ctx.record.blame.get(node)
    return 0.0 if blame is None else decayed(ctx, blame)


def decayed(ctx: StepContext, blame: Blame) -> float:
    """What is left of the blame now."""
    return blame.score * math.pow(0.5, (ctx.now - blame.at) / ctx.policy.blame_half_life_s)


def lemon_reason(ctx: StepContext, node: str) -> str | None:
    """Why one more incident makes `node` a lemon, None if it does not (arXiv 2410.21680)."""
    start = ctx.now - ctx.policy.lemon_window_s
    earlier = [t for t in ctx.record.history.get(node, []) if start < t <= ctx.now - HOUR_S]
    if len(earlier) + 1 < ctx.policy.lemon_incidents:
        return None
    days = ctx.policy.lemon_window_s / 86400.0
    return f"{node} is a lemon: {len(earlier) + 1} incidents in {days:g} days, each time back after a restart"
