"""Transfers that are long beyond what waiting explains.

A collective segment is transfer plus waiting for the slowest peer, so who arrives last has the shortest
one. A rank's own link is suspect when its time exceeds its peers' by more than its earlier arrival, the
ring when even its minimum (pure transfer) steps up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from megascale.core.stats.compute import AMONG, NEED, SIGMAS
from megascale.core.stats.robust import (
    change_point,
    first_run,
    nanmedian,
    natural_spread,
    peer_reference,
    step_noise,
    window_medians,
)
from megascale.core.stats.trace import Floats, Ints, Trace
from megascale.core.stats.verdicts import StragglerVerdict, confidence

_MIN_EXCESS: Final = 0.25  # of the peers' transfer
_MIN_SHARE: Final = 0.002  # of compute: shorter transfers are noise of the clock
_RECEIVE_SHARE: Final = 0.015  # a receive also waits for the sender, whose healthy lag is about 1% of compute
_WINDOW: Final = 8
_SEGMENTS: Final = ("send", "recv", "allreduce")


@dataclass(frozen=True, slots=True)
class _Slow:
    column: int
    segment: str
    level: float
    seconds: float
    limit: float
    start: int
    windows: int


def link_verdicts(trace: Trace, explained_since: Sequence[int]) -> list[StragglerVerdict]:
    """Slow links.

    Args:
        explained_since: first rows of slow ranks, stalls and the like: what lengthens with them is waiting.
    """
    slow = [item for segment in _SEGMENTS for item in _slow_columns(trace, segment)]
    slow = [item for item in slow if not _explained(item.start, explained_since)]
    if slow:
        return [_pair_verdict(trace, slow)]
    if explained_since:
        return []
    return _ring_verdicts(trace)


def _explained(start: int, since: Sequence[int]) -> bool:
    return any(start >= row - 3 * _WINDOW for row in since)


def _arrival(trace: Trace) -> Floats | None:
    return trace.total("data", "forward", "backward", "send", "recv")


def _slow_columns(trace: Trace, segment: str) -> list[_Slow]:
    values, compute = trace.get(segment), trace.total("forward", "backward")
    if values is None or values.shape[0] < _WINDOW * NEED:
        return []
    over = values - peer_reference(values, trace.topology)
    arrival = _arrival(trace)
    if segment == "allreduce" and arrival is not None:
        early = peer_reference(arrival, trace.topology) - arrival
        over -= np.clip(np.nan_to_num(early), 0.0, None)
    windows = window_medians(over, _WINDOW)
    step_time = 0.0 if compute is None else float(nanmedian(compute))
    offset = values.shape[0] - windows.shape[0] * _WINDOW
    found = []
    for columns in trace.topology.stage_columns().values():
        normal = float(nanmedian(values[:, columns]))
        noise = float(nanmedian(step_noise(windows[:, columns])))
        nodes = [trace.topology.nodes[int(c)] for c in columns]
        natural = float(np.nan_to_num(natural_spread(nanmedian(windows[:, columns], axis=0), nodes)))
        least = _MIN_SHARE * step_time
        if segment == "recv":
            least = min(_RECEIVE_SHARE * step_time, 0.75 * normal)
        limit = max(_MIN_EXCESS * normal, least, SIGMAS * noise, SIGMAS * natural)
        if np.isnan(limit) or normal <= 0.0:
            continue
        for column in columns:
            run = first_run((windows[:, column] > limit).astype(np.int64), NEED, AMONG)
            if run is not None:
                start, end = offset + run[0] * _WINDOW, offset + (run[1] + 1) * _WINDOW
                seconds = float(nanmedian(over[start:end, column]))
                found.append(
                    _Slow(
                        int(column),
                        segment,
                        seconds / normal,
                        seconds,
                        limit,
                        _refine(over[:, column], start),
                        run[1] - run[0] + 1,
                    )
                )
    return found


def _refine(series: Floats, start: int) -> int:
    low = max(0, start - 2 * _WINDOW)
    split, score = change_point(series[low : start + 3 * _WINDOW])
    return low + split if score > 5.0 and start > 0 else start


def _pair_verdict(trace: Trace, slow: Sequence[_Slow]) -> StragglerVerdict:
    """All slow transfers together: the node that shows most of the excess is named."""
    weight: dict[str, float] = {}
    for item in slow:
        node = trace.topology.nodes[item.column]
        weight[node] = weight.get(node, 0.0) + item.level * (1.25 if item.segment == "send" else 1.0)
    node = max(weight, key=lambda name: weight[name])
    worst = max(slow, key=lambda item: item.level)
    ranks = tuple(sorted({trace.topology.ranks[item.column] for item in slow}))
    start = min(item.start for item in slow)
    segments = sorted({item.segment for item in slow})
    return StragglerVerdict(
        "slow_link",
        node,
        ranks,
        round(worst.level, 4),
        int(trace.steps[start]),
        confidence(worst.seconds, worst.limit, max(item.windows for item in slow)),
        f"{'/'.join(segments)} of rank {', '.join(map(str, ranks[:8]))} takes "
        f"{worst.seconds * 1e3:.1f} ms ({worst.level:.0%}) longer than stage peers beyond waiting since step "
        f"{int(trace.steps[start])} while compute is normal",
    )


def _ring_verdicts(trace: Trace) -> list[StragglerVerdict]:
    values = trace.get("allreduce")
    if values is None:
        return []
    verdicts = []
    for stage, columns in trace.topology.stage_columns().items():
        verdict = _ring_verdict(trace, stage, columns, values)
        if verdict is not None:
            verdicts.append(verdict)
    return verdicts


def _ring_verdict(trace: Trace, stage: int, columns: Ints, values: Floats) -> StragglerVerdict | None:
    if np.isnan(values[:, columns]).all(axis=1).any():
        return None
    transfer = np.nanmin(values[:, columns], axis=1)
    split, score = change_point(transfer)
    if split == 0 or score < 8.0 or len(transfer) - split < _WINDOW * 2:
        return None
    before, after = float(np.median(transfer[:split])), float(np.median(transfer[split:]))
    level = after / before - 1.0 if before > 0 else 0.0
    later = window_medians(transfer[split:, None], _WINDOW)[:, 0]
    if level < _MIN_EXCESS or float(np.mean(later > (before + after) / 2)) < NEED / AMONG:
        return None
    nodes = {trace.topology.nodes[int(c)] for c in columns}
    step = int(trace.steps[split])
    return StragglerVerdict(
        "slow_link",
        next(iter(nodes)) if len(nodes) == 1 else None,
        tuple(trace.topology.ranks[int(c)] for c in columns),
        round(level, 4),
        step,
        confidence(level, _MIN_EXCESS, len(later)),
        f"all-reduce of stage {stage}: its shortest time (pure transfer, no waiting) went from "
        f"{before * 1e3:.1f} to {after * 1e3:.1f} ms at step {step}: "
        "a link of the ring is slow, which one needs a pairwise test",
    )
