"""Sporadic pauses of hosts (garbage collection, other processes) and stalls of the data path."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from megascale.core.stats.compute import AMONG, NEED, SIGMAS
from megascale.core.stats.robust import (
    change_point,
    first_run,
    nanmedian,
    peer_reference,
    spread,
    step_noise,
    window_medians,
)
from megascale.core.stats.trace import Floats, Ints, Trace
from megascale.core.stats.verdicts import StragglerVerdict, confidence

Flags = npt.NDArray[np.bool_]

_FAMILIES: Final = (("forward", "backward"), ("optimizer",), ("data",))
_HOST_SEGMENTS: Final = tuple(name for names in _FAMILIES for name in names)
_SIGMAS: Final = 8.0
_MIN_RATIO: Final = 0.15  # of the segment's own normal time
_MIN_SHARE: Final = 0.03  # of compute
_MIN_EVENTS: Final = 3
_MIN_LOST: Final = 0.003  # of the time: less is the tail of ordinary noise,
_LONG_PAUSE: Final = 0.1  # unless the pauses are this long against forward+backward
_MAX_RATE: Final = 0.25  # more often than this it is not sporadic
_TAIL: Final = 2.5  # times as many beyond half the limit: the tail of heavy noise, not events of their own
_DATA_SHARE: Final = 0.03
_DATA_ALWAYS: Final = 0.25
_WINDOW: Final = 8


@dataclass(frozen=True, slots=True)
class _Events:
    """Pauses: row and column of each, its seconds and segment."""

    rows: Ints
    columns: Ints
    seconds: Floats
    in_data: int


def pause_verdicts(trace: Trace, convicted: Collection[int]) -> list[StragglerVerdict]:
    """host_pause, or data_stall where nearly all pauses are in the data segment.

    Args:
        convicted: columns of slow ranks, left out.
    """
    events = _find(trace, convicted)
    compute = trace.total("forward", "backward")
    if compute is None or len(events.rows) < _MIN_EVENTS:
        return []
    step_time = float(nanmedian(compute))
    columns, counts = np.unique(events.columns, return_counts=True)
    worst = np.zeros(len(trace.steps))
    np.maximum.at(worst, events.rows, events.seconds)
    lost = float(worst.sum()) / (len(trace.steps) * step_time)
    if lost < _MIN_LOST and float(np.median(events.seconds)) < _LONG_PAUSE * step_time:
        return []
    nodes = [trace.topology.nodes[int(c)] for c in events.columns]
    main = max(set(nodes), key=nodes.count)
    single = nodes.count(main) >= 0.8 * len(nodes)
    data = events.in_data >= 0.8 * len(events.rows)
    first = int(events.rows.min())
    return [
        StragglerVerdict(
            "data_stall" if data else "host_pause",
            main if single else None,
            tuple(trace.topology.ranks[int(c)] for c in columns),
            round(lost, 4),
            int(trace.steps[first]),
            round(min(0.99, 0.5 + 0.1 * len(events.rows)), 3),
            f"{len(events.rows)} sporadic pauses of {float(np.median(events.seconds)) * 1e3:.0f} ms (median) "
            "on "
            f"{len(columns)} of {len(trace.topology.ranks)} ranks, at most {int(counts.max())} per rank in "
            f"{len(trace.steps)} steps{', all but a few in loading data' if data else ''}",
        )
    ]


def _find(trace: Trace, convicted: Collection[int]) -> _Events:
    compute = trace.total("forward", "backward")
    scale = float(nanmedian(compute)) if compute is not None else 0.0
    excess = {
        name: _excess(values, shared=name != "data")
        for name in _HOST_SEGMENTS
        if (values := trace.get(name)) is not None
    }
    hits: dict[str, Flags] = {}
    for names in _FAMILIES:
        found = {name: _hits(excess, name, scale, convicted) for name in names if name in excess}
        events = sum(int(hit.sum()) for hit, _ in found.values())
        if sum(int(half.sum()) for _, half in found.values()) <= _TAIL * events:
            hits |= {name: hit for name, (hit, _) in found.items()}
    where = {name: np.nonzero(hit) for name, hit in hits.items()}
    if not where:
        return _Events(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), 0)
    return _Events(
        np.concatenate([rows for rows, _ in where.values()]),
        np.concatenate([columns for _, columns in where.values()]),
        np.concatenate([excess[name][1][at] for name, at in where.items()]),
        len(where["data"][0]) if "data" in where else 0,
    )


def _hits(
    excess: dict[str, tuple[Floats, Floats]], name: str, scale: float, convicted: Collection[int]
) -> tuple[Flags, Flags]:
    """What is beyond the limits of a pause, and what is beyond half of them."""
    ratio, over = excess[name]
    limit = np.maximum(_MIN_RATIO, _SIGMAS * spread(ratio, axis=0))
    hit = (ratio > limit) & (over > _MIN_SHARE * scale)
    half = (ratio > limit / 2) & (over > _MIN_SHARE * scale / 2)
    other = {"forward": "backward", "backward": "forward"}.get(name)
    if other in excess:  # both longer by the same factor: a longer sequence, not a pause
        hit &= ~(excess[other][0] > 0.3 * ratio)
    half[:, list(convicted)] = False
    hit[:, list(convicted)] = False
    hit[:, hit.mean(axis=0) > _MAX_RATE] = False
    return hit, half


def _excess(values: Floats, *, shared: bool) -> tuple[Floats, Floats]:
    """Each value against its rank's own median: ratio - 1, and seconds.

    Args:
        shared: without the step's common factor. A loading time has none: a file system stalls all at once.
    """
    own = nanmedian(values, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = values / own
        common = nanmedian(ratio, axis=1)[:, None] if shared and values.shape[1] > 2 else 1.0
        ratio = ratio / common - 1.0
    ratio = np.nan_to_num(ratio, nan=0.0, posinf=0.0, neginf=0.0)
    return ratio, ratio * np.nan_to_num(own)


def data_verdicts(trace: Trace) -> list[StragglerVerdict]:
    """Ranks that keep waiting for data longer than their peers or than before, or all of them."""
    data, compute = trace.get("data"), trace.total("forward", "backward")
    if data is None or compute is None or data.shape[0] < _WINDOW * NEED:
        return []
    step_time = float(nanmedian(compute))
    found = {**_stepped(trace, data, step_time), **_behind_peers(trace, data, step_time)}
    nodes = trace.topology.node_columns()
    if len(nodes) > 1 and 2 * len(found) > len(nodes):
        return [_verdict(trace, None, list(found.values()), step_time)]
    if found:
        return [_verdict(trace, node, [stall], step_time) for node, stall in found.items()]
    level = float(nanmedian(data))
    if level > _DATA_ALWAYS * step_time:
        everyone = _Stall(tuple(range(data.shape[1])), 0, level, _DATA_ALWAYS * step_time, 1)
        return [_verdict(trace, None, [everyone], step_time)]
    return []


@dataclass(frozen=True, slots=True)
class _Stall:
    columns: tuple[int, ...]
    start: int
    seconds: float
    limit: float
    windows: int


def _behind_peers(trace: Trace, data: Floats, step_time: float) -> dict[str, _Stall]:
    over = data - peer_reference(data, trace.topology)
    windows = window_medians(over, _WINDOW)
    noise = float(np.nan_to_num(nanmedian(step_noise(windows))))
    limit = max(_DATA_SHARE * step_time, SIGMAS * noise, float(nanmedian(data)))
    offset = data.shape[0] - windows.shape[0] * _WINDOW
    found = {}
    for node, columns in trace.topology.node_columns().items():
        flags = (windows > limit).astype(np.int64)
        runs = {c: run for c in columns if (run := first_run(flags[:, c], NEED, AMONG))}
        if not runs:
            continue
        start = offset + min(run[0] for run in runs.values()) * _WINDOW
        seconds = float(nanmedian(over[start:, list(runs)]))
        start = _refine(nanmedian(over[:, list(runs)], axis=1), start)
        count = max(run[1] - run[0] + 1 for run in runs.values())
        found[node] = _Stall(tuple(runs), start, seconds, limit, count)
    return found


def _refine(series: Floats, start: int) -> int:
    low = max(0, start - 2 * _WINDOW)
    split, score = change_point(series[low : start + 3 * _WINDOW])
    return low + split if score > 5.0 and start > 0 else start


def _stepped(trace: Trace, data: Floats, step_time: float) -> dict[str, _Stall]:
    """Nodes whose own loading time stepped up: peers on the same node stall with them."""
    found = {}
    for node, columns in trace.topology.node_columns().items():
        series = nanmedian(data[:, columns], axis=1)
        split, score = change_point(series)
        if split == 0 or score < _SIGMAS or len(series) - split < 2 * _WINDOW:
            continue
        before, after = float(nanmedian(series[:split])), float(nanmedian(series[split:]))
        rise = after - before
        if after > 2 * before and rise > _DATA_SHARE * step_time:
            windows = (len(series) - split) // _WINDOW
            found[node] = _Stall(tuple(columns), split, rise, _DATA_SHARE * step_time, windows)
    return found


def _verdict(trace: Trace, node: str | None, stalls: Sequence[_Stall], step_time: float) -> StragglerVerdict:
    seconds = float(np.median([stall.seconds for stall in stalls]))
    step = int(trace.steps[min(stall.start for stall in stalls)])
    columns = sorted({column for stall in stalls for column in stall.columns})
    where = f"{len(columns)} ranks of {node}" if node else f"{len(columns)} ranks on {len(stalls)} nodes"
    return StragglerVerdict(
        "data_stall",
        node,
        tuple(trace.topology.ranks[column] for column in columns),
        round(seconds / step_time, 4),
        step,
        confidence(seconds, stalls[0].limit, max(stall.windows for stall in stalls)),
        f"loading data takes {seconds * 1e3:.0f} ms longer than normal on {where} "
        f"({seconds / step_time:.1%} of forward+backward) since step {step}",
    )
