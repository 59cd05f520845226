"""Refusing to act: when most nodes fall silent at once, it is this driver that is cut off.

Training may well go on without it, and nothing it decides would reach the nodes. So it pages and waits a
few times the silence bound before it believes that they are all lost.
"""

from __future__ import annotations

from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.state.context import Turn
from megascale.core.state.record import NodeStatus

_AT_LEAST: Final = 3
_PATIENCE: Final = 4.0
_SILENT_SHARE: Final = 0.5


def last_heard(turn: Turn, name: str) -> float:
    """When the node was heard last, by its own beat or a summarised report; 0.0 = not at all."""
    node = turn.live.nodes.get(name)
    if node is None:
        return 0.0
    if node.absent:
        return node.heard_until
    return max(node.heard_until, turn.live.heard_all_at, min(turn.live.quiet_until, turn.now))


def waits_until(turn: Turn) -> float:
    """Until when silence is not believed, because most nodes are silent; 0.0 = it is believed."""
    live, policy = turn.live, turn.policy
    if turn.now < live.cut_off_until:
        return live.cut_off_until
    if turn.now - live.cut_off_until < policy.silence_s or not _most_are_silent(turn):
        return 0.0
    live.cut_off_until = turn.now + policy.silence_s * _PATIENCE
    wait = f"{policy.silence_s * _PATIENCE:g} s"
    turn.emit(fx.Page, f"most nodes fell silent at once: this driver may be cut off, it waits {wait}")
    return live.cut_off_until


def _most_are_silent(turn: Turn) -> bool:
    bound = turn.now - turn.policy.silence_s * _SILENT_SHARE
    present = [name for name, node in turn.live.nodes.items() if node.status is not NodeStatus.GONE]
    silent = sum(1 for name in present if last_heard(turn, name) <= bound)
    return silent >= _AT_LEAST and silent > len(present) / 2


def nobody_is_heard(turn: Turn) -> bool:
    """Whether no node of the attempt was heard lately: then nothing is known of its progress either."""
    bound = turn.now - turn.policy.silence_s * _SILENT_SHARE
    return all(last_heard(turn, name) <= bound for name in turn.record.assignment)
