"""Whether this driver is cut off from the nodes, which is likelier than losing most of them at once.

Training may go on without the driver, and nothing that the driver decides would reach the nodes.
"""

from __future__ import annotations

from typing import Final

from megascale.core.state.context import StepContext
from megascale.core.state.record import NodeStatus

_AT_LEAST: Final = 3
_SILENT_SHARE: Final = 0.5


def last_heard(ctx: StepContext, name: str) -> float:
    """When the node was heard last, by its own heartbeat or a summarised report; 0.0 = not at all."""
    node = ctx.live.nodes.get(name)
    if node is None:
        return 0.0
    if node.absent:
        return node.heard_until
    return max(node.heard_until, ctx.live.heard_all_at, min(ctx.live.quiet_until, ctx.now))


def is_waited_out(ctx: StepContext) -> bool:
    """Whether the driver waits before it counts silent nodes as lost, because most fell silent at once."""
    return ctx.now < ctx.live.cut_off_until


def seems_cut_off(ctx: StepContext) -> bool:
    """Whether most nodes are silent, and the driver has not just waited for them."""
    return ctx.now - ctx.live.cut_off_until >= ctx.policy.silence_s and _most_are_silent(ctx)


def _most_are_silent(ctx: StepContext) -> bool:
    bound = ctx.seen_until - ctx.policy.silence_s * _SILENT_SHARE
    present = [name for name, node in ctx.live.nodes.items() if node.status is not NodeStatus.GONE]
    silent = sum(1 for name in present if last_heard(ctx, name) <= bound)
    return silent >= _AT_LEAST and silent > len(present) / 2


def nobody_is_heard(ctx: StepContext) -> bool:
    """Whether no node of the attempt was heard lately; then nothing is known of its progress."""
    bound = ctx.seen_until - ctx.policy.silence_s * _SILENT_SHARE
    return all(last_heard(ctx, name) <= bound for name in ctx.record.assignment)
