"""Refusing to act: when most nodes fall silent at once, it is this driver that is cut off.

Training may well go on without it, and nothing it decides would reach the nodes. So it pages and waits a
few times the silence bound before it believes that they are all lost.
"""

from __future__ import annotations

from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.state.context import StepContext
from megascale.core.state.record import NodeStatus

_AT_LEAST: Final = 3
_PATIENCE: Final = 4.0
_SILENT_SHARE: Final = 0.5


def last_heard(ctx: StepContext, name: str) -> float:
    """When the node was heard last, by its own heartbeat or a summarised report; 0.0 = not at all."""
    node = ctx.live.nodes.get(name)
    if node is None:
        return 0.0
    if node.absent:
        return node.heard_until
    return max(node.heard_until, ctx.live.heard_all_at, min(ctx.live.quiet_until, ctx.now))


def waits_until(ctx: StepContext) -> float:
    """Until when silence is not believed, because most nodes are silent; 0.0 = it is believed."""
    live, policy = ctx.live, ctx.policy
    if ctx.now < live.cut_off_until:
        return live.cut_off_until
    if ctx.now - live.cut_off_until < policy.silence_s or not _most_are_silent(ctx):
        return 0.0
    live.cut_off_until = ctx.now + policy.silence_s * _PATIENCE
    wait = f"{policy.silence_s * _PATIENCE:g} s"
    ctx.emit(fx.Page, f"most nodes fell silent at once: this driver may be cut off, it waits {wait}")
    return live.cut_off_until


def _most_are_silent(ctx: StepContext) -> bool:
    bound = ctx.now - ctx.policy.silence_s * _SILENT_SHARE
    present = [name for name, node in ctx.live.nodes.items() if node.status is not NodeStatus.GONE]
    silent = sum(1 for name in present if last_heard(ctx, name) <= bound)
    return silent >= _AT_LEAST and silent > len(present) / 2


def nobody_is_heard(ctx: StepContext) -> bool:
    """Whether no node of the attempt was heard lately: then nothing is known of its progress either."""
    bound = ctx.now - ctx.policy.silence_s * _SILENT_SHARE
    return all(last_heard(ctx, name) <= bound for name in ctx.record.assignment)
