"""Medians, spreads, windows and runs that a few odd values cannot move."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np

from megascale.core.stats.trace import Floats, Ints, Topology

MAD_TO_SIGMA: Final = 1.4826  # of a normal distribution
_FEW_NODES: Final = 4
_MANY_RANKS: Final = 8


def nanmedian(values: Floats, axis: int | None = None) -> Floats:
    """Median without NaN; NaN where everything is missing."""
    if values.size and not np.isnan(values).any():
        return np.asarray(np.median(values, axis=axis))  # many times faster
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN slices are expected
        result: Floats = np.asarray(np.nanmedian(values, axis=axis))
    return result


def spread(values: Floats, axis: int | None = None) -> Floats:
    """Standard deviation estimated from the median absolute deviation."""
    center = nanmedian(values, axis=axis)
    if axis is not None:
        center = np.expand_dims(center, axis)
    return MAD_TO_SIGMA * nanmedian(np.abs(values - center), axis=axis)


def peer_reference(values: Floats, topology: Topology) -> Floats:
    """What is normal for each rank at each step: the median of its stage without its own node.

    Where the stage lives on one node its other ranks serve; a rank alone in its stage gets NaN.

    Args:
        values: (steps, ranks).
    """
    reference = np.full(values.shape, np.nan)
    nodes = np.asarray(topology.nodes)
    for columns in topology.stage_columns().values():
        names = np.unique(nodes[columns])
        if len(columns) == 1:
            continue
        if len(names) >= _FEW_NODES:
            reference[:, columns] = nanmedian(values[:, columns], axis=1)[:, None]
        elif len(names) > 1:
            for name in names:
                own = columns[nodes[columns] == name]
                others = columns[nodes[columns] != name]
                reference[:, own] = nanmedian(values[:, others], axis=1)[:, None]
        else:
            for column in columns:
                reference[:, column] = nanmedian(values[:, columns[columns != column]], axis=1)
    return reference


def window_medians(values: Floats, length: int) -> Floats:
    """Medians of consecutive windows: (steps, ranks) -> (steps // length, ranks); cut in front."""
    count = values.shape[0] // length
    trimmed = values[values.shape[0] - count * length :]
    return nanmedian(trimmed.reshape(count, length, *values.shape[1:]), axis=1)


def step_noise(windows: Floats) -> Floats:
    """Chance variation of each column, from differences of neighbours: a lasting step does not count.

    Args:
        windows: (windows, ranks); the result has shape (ranks,).
    """
    noise: Floats = np.asarray(
        MAD_TO_SIGMA / np.sqrt(2) * nanmedian(np.abs(np.diff(windows, axis=0)), axis=0)
    )
    return noise


def natural_spread(levels: Floats, nodes: Sequence[str]) -> float:
    """Lasting differences between healthy ranks; NaN where there are too few to tell.

    With few nodes a slow one is up to half of them, so only differences within a node count.

    Args:
        levels: one per rank; nodes: node of each.
    """
    if len(levels) < _MANY_RANKS:
        return float("nan")
    names = sorted(set(nodes))
    if len(names) >= _FEW_NODES:
        return float(spread(levels))
    array = np.asarray(nodes)
    inside = np.concatenate([levels[array == name] - nanmedian(levels[array == name]) for name in names])
    return float(spread(inside))


def first_run(exceeds: Ints, need: int, among: int) -> tuple[int, int] | None:
    """First and last window of the longest stretch in which `need` of every `among` windows exceed.

    Args:
        exceeds: one flag (0 or 1) per window.
    """
    count = len(exceeds)
    if count < need:
        return None
    among = min(among, count)
    inside = np.convolve(exceeds, np.ones(among, dtype=np.int64), mode="valid") >= need
    best: tuple[int, int] | None = None
    start: int | None = None
    for index, flag in enumerate([*inside, False]):
        if flag and start is None:
            start = index
        elif not flag and start is not None:
            stretch = np.flatnonzero(exceeds[start : index - 1 + among]) + start
            if best is None or stretch[-1] - stretch[0] > best[1] - best[0]:
                best = int(stretch[0]), int(stretch[-1])
            start = None
    return best


def change_point(series: Floats) -> tuple[int, float]:
    """Where a series steps up the most, and how many standard errors the step is.

    Returns:
        (index of the first value of the higher part, z); (0, 0.0) when the series is too short or flat.
    """
    known = np.flatnonzero(~np.isnan(series))
    values = series[known]
    count = len(values)
    if count < 8:
        return 0, 0.0
    noise = MAD_TO_SIGMA * float(np.median(np.abs(np.diff(values)))) / np.sqrt(2)
    center = np.median(values)
    limit = max(8 * noise, 3 * float(np.median(np.abs(values - center))), 1e-12)
    clipped = np.clip(values, center - limit, center + limit)
    left = np.arange(1, count)
    sums = np.cumsum(clipped)[:-1]
    before = sums / left
    after = (clipped.sum() - sums) / (count - left)
    scale = np.sqrt(left * (count - left) / count)
    score = (after - before) * scale / max(noise, 1e-9)
    inner = slice(2, count - 3)
    if score[inner].size == 0:
        return 0, 0.0
    best = int(np.argmax(score[inner])) + 2
    return int(known[best + 1]), float(score[best])
