"""Wrong numbers: NaN, and jumps of loss or gradient norm that stay (ByteRobust: 5x is anomalous).

The first time, a machine is suspected: the state is rolled back to before the jump. Steps are replayed
exactly, so the same jump at the same step again comes from code or data, and then a person decides.
"""

from __future__ import annotations

import math
from typing import Final

from megascale.core import effects as fx
from megascale.core.events import RankProgress
from megascale.core.incidents import Fault
from megascale.core.lineage import Commit
from megascale.core.recovery import respond
from megascale.core.shadow import held_back
from megascale.core.state import NumericsWatch, Stage
from megascale.core.turn import Turn

_CONFIRMED: Final = {"not_a_number": 2, "spike": 5}


def observe(turn: Turn, rank: RankProgress) -> None:
    """Judge the loss and gradient norm of a step, once per step."""
    live, watch = turn.live, turn.live.numerics
    if rank.loss is None or rank.step <= watch.step or turn.record.stage is not Stage.RUNNING:
        return
    watch.step = rank.step
    kind, reason = _judge(watch, rank)
    if not kind:
        watch.kind, watch.count = "", 0
        return
    if kind != watch.kind:
        watch.kind, watch.count, watch.first_step, watch.reason = kind, 0, rank.step, reason
    watch.count += 1
    if watch.count == _CONFIRMED[kind]:
        _act(turn, watch)
    del live


def _judge(watch: NumericsWatch, rank: RankProgress) -> tuple[str, str]:
    found = [watch.loss.observe(rank.step, rank.loss if rank.loss is not None else math.nan)]
    if rank.grad_norm is not None and math.isfinite(rank.grad_norm):
        found.append(watch.grad_norm.observe(rank.step, rank.grad_norm))
    anomalies = [anomaly for anomaly in found if anomaly is not None]
    worst = min(anomalies, key=lambda anomaly: anomaly.kind, default=None)
    return (worst.kind, worst.reason) if worst else ("", "")
