"""Ranks, nodes and stages whose forward and backward take longer than their peers'.

Collective segments hold the waiting for the slowest peer, so only compute convicts: MegaScale 5.1 (about 0.5%
of machines ~10% slower, repeatably), and the patterns of OSDI'25 2505.05713: isolated cell = worker, stripe =
stage, scatter = sequence length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from megascale.core.stats.robust import (
    change_point,
    first_run,
    nanmedian,
    natural_spread,
    peer_reference,
    spread,
    step_noise,
    window_medians,
)
from megascale.core.stats.trace import Floats, Ints, Topology, Trace
from megascale.core.stats.verdicts import StragglerVerdict, confidence

MIN_SLOWDOWN: Final = 0.03
SIGMAS: Final = 4.5
NEED: Final = 4  # of AMONG windows must agree
AMONG: Final = 5
NATURAL_SPREAD: Final = 0.006  # of healthy GPUs of one type, assumed where there are too few to measure it
_WINDOWS: Final = (8, 5, 16, 32, 64)
_STAGE_LEVEL: Final = 0.08
_OWN_HISTORY: Final = 0.05
_SCATTER_SIGMA: Final = 0.04
_SCATTER_CORRELATION: Final = 0.5


@dataclass(frozen=True, slots=True)
class SlowRank:
    """A rank (by column) slower than its peers from row `start` to row `end`."""

    column: int
    level: float
    threshold: float
    start: int
    end: int
    windows: int


def threshold_of(windows: Floats, nodes: Sequence[str]) -> float:
    """Excess over peers that chance and the natural spread of healthy ranks do not reach.

    Args:
        windows: relative excess of the ranks of one stage, (windows, ranks); nodes: node of each rank.
    """
    noise = float(np.nan_to_num(nanmedian(step_noise(windows))))
    natural = natural_spread(nanmedian(windows, axis=0), nodes)
    natural = NATURAL_SPREAD if np.isnan(natural) else natural
    return max(MIN_SLOWDOWN, SIGMAS * noise, SIGMAS * natural)


def slow_ranks(trace: Trace) -> list[SlowRank]:
    """Ranks whose compute exceeds that of their stage peers in k of n windows."""
    compute = trace.total("forward", "backward")
    if compute is None:
        return []
    excess = compute / peer_reference(compute, trace.topology) - 1.0
    found: dict[int, SlowRank] = {}
    for length in _WINDOWS:
        if excess.shape[0] < length * NEED:
            continue
        windows = window_medians(excess, length)
        offset = excess.shape[0] - windows.shape[0] * length
        for columns in trace.topology.stage_columns().values():
            limit = threshold_of(windows[:, columns], [trace.topology.nodes[int(c)] for c in columns])
            for column in columns:
                if int(column) in found:
                    continue
                run = first_run((windows[:, column] > limit).astype(np.int64), NEED, AMONG)
                if run is not None:
                    found[int(column)] = _slow_rank(
                        excess,
                        int(column),
                        limit,
                        (offset + run[0] * length, offset + (run[1] + 1) * length),
                        length,
                    )
    return [found[column] for column in sorted(found)]


def _slow_rank(excess: Floats, column: int, limit: float, rows: tuple[int, int], length: int) -> SlowRank:
    """Finds the onset to the step; what the rank was off before it does not count as slow-down."""
    start, end = rows
    level = float(nanmedian(excess[start:end, column]))
    first = max(0, start - 3 * length)
    split, score = change_point(excess[first : min(end, start + 4 * length), column])
    if score > 5.0:
        before = float(nanmedian(excess[: first + split, column]))
        if before < 0.5 * level:
            start = first + split
            level = float(nanmedian(excess[start:end, column]))
            level = (1.0 + level) / (1.0 + before) - 1.0 if start >= _WINDOWS[0] else level
    return SlowRank(column, level, limit, start, end, max((end - start) // length, 1))


def slow_nodes(trace: Trace, slow: list[SlowRank]) -> list[StragglerVerdict]:
    """One verdict per node with slow ranks."""
    compute = trace.total("forward", "backward")
    if compute is None:
        return []
    by_column = {rank.column: rank for rank in slow}
    verdicts = []
    for node, columns in trace.topology.node_columns().items():
        mine = [by_column[column] for column in columns if column in by_column]
        if not mine:
            continue
        level = float(np.median([rank.level for rank in mine]))
        start = min(rank.start for rank in mine)
        ranks = tuple(trace.topology.ranks[rank.column] for rank in mine)
        own = float(nanmedian(compute[start:, [rank.column for rank in mine]]))
        windows = max(rank.windows for rank in mine)
        what = f"rank {ranks[0]}" if len(ranks) == 1 else f"{len(ranks)} of {len(columns)} ranks"
        verdicts.append(
            StragglerVerdict(
                "slow_node",
                node,
                ranks,
                round(level, 4),
                int(trace.steps[start]),
                confidence(level, mine[0].threshold, windows),
                f"{what} of {node}: forward+backward {own:.4f} s, {level:.1%} above stage peers "
                f"since step {int(trace.steps[start])} (limit {mine[0].threshold:.1%}, {windows} windows)",
            )
        )
    return verdicts


def stage_verdicts(trace: Trace, slow: list[SlowRank]) -> list[StragglerVerdict]:
    """Stages slower than the other stages; on one node and with an onset it is the node."""
    compute = trace.total("forward", "backward")
    groups = trace.topology.stage_columns()
    if compute is None or len(groups) < 2:
        return []
    convicted = {rank.column for rank in slow}
    series = {}
    for stage, columns in groups.items():
        healthy = [int(c) for c in columns if int(c) not in convicted] or [int(c) for c in columns]
        series[stage] = nanmedian(compute[:, healthy], axis=1)
    verdicts = []
    for stage, columns in groups.items():
        others = nanmedian(np.stack([series[other] for other in groups if other != stage]), axis=0)
        verdict = _stage_verdict(trace, stage, columns, series[stage] / others - 1.0)
        if verdict is not None:
            verdicts.append(verdict)
    return verdicts


def history_verdict(trace: Trace) -> StragglerVerdict | None:
    """A job on one node has no peers elsewhere: an abrupt lasting step in its own compute convicts the node.

    A drift (diurnal swing) has no abrupt step. Less sure than a comparison: the input may have changed.
    """
    compute = trace.total("forward", "backward")
    nodes = set(trace.topology.nodes)
    if compute is None or len(nodes) != 1:
        return None
    series = nanmedian(compute, axis=1)
    split, score = change_point(series)
    if split < 8 or len(series) - split < 2 * _WINDOWS[0] or score < 8.0:
        return None
    rise = float(nanmedian(series[split:]) / nanmedian(series[:split])) - 1.0
    jump = float(nanmedian(series[split : split + 8]) / nanmedian(series[split - 8 : split])) - 1.0
    limit = max(_OWN_HISTORY, SIGMAS * float(step_noise(series[:, None])[0] / nanmedian(series)) / np.sqrt(8))
    if rise < limit or jump < 0.7 * rise:
        return None
    node, step = next(iter(nodes)), int(trace.steps[split])
    return StragglerVerdict(
        "slow_node",
        node,
        trace.topology.ranks,
        round(rise, 4),
        step,
        round(0.7 * confidence(rise, limit, 5), 3),
        f"forward+backward of all ranks of {node} rose by {rise:.1%} at step {step}; "
        "there is no other node to compare with",
    )


def _stage_verdict(trace: Trace, stage: int, columns: Ints, excess: Floats) -> StragglerVerdict | None:
    ranks = tuple(trace.topology.ranks[int(c)] for c in columns)
    nodes = {trace.topology.nodes[int(c)] for c in columns}
    split, score = change_point(excess)
    before, after = float(nanmedian(excess[:split])) if split else 0.0, float(nanmedian(excess[split:]))
    shift = (1.0 + after) / (1.0 + before) - 1.0
    limit = max(MIN_SLOWDOWN, SIGMAS * float(spread(np.diff(excess))) / np.sqrt(2 * 8))
    stepped = split > 0 and score > 8.0 and shift > limit and len(excess) - split >= 16
    if stepped and len(nodes) == 1 and split >= 8 and _lasts(excess, split, before, after):
        node = next(iter(nodes))
        step = int(trace.steps[split])
        return StragglerVerdict(
            "slow_node",
            node,
            ranks,
            round(shift, 4),
            step,
            round(0.8 * confidence(shift, limit, 5), 3),
            f"stage {stage} runs on {node} alone and became {shift:.1%} slower than the other stages "
            f"at step {step}; "
            "no stage peers elsewhere to compare with",
        )
    level = after if stepped else float(nanmedian(excess))
    windows = window_medians(excess[split if stepped else 0 :][:, None], min(8, max(1, len(excess) // 2)))[
        :, 0
    ]
    if level < _STAGE_LEVEL or float(np.mean(windows > 0.5 * level)) < 0.8:
        return None
    start = split if stepped else 0
    return StragglerVerdict(
        "stage_imbalance",
        None,
        ranks,
        round(level, 4),
        int(trace.steps[start]),
        confidence(level, _STAGE_LEVEL, len(windows)),
        f"all {len(ranks)} ranks of stage {stage}: forward+backward {level:.1%} above the other stages in "
        f"{np.mean(windows > 0.5 * level):.0%} of {len(windows)} windows: the layers are cut unevenly",
    )


def _lasts(excess: Floats, split: int, before: float, after: float) -> bool:
    """Whether nearly all windows before the step are below its middle and nearly all after it above."""
    middle = (before + after) / 2.0
    earlier = window_medians(excess[:split, None], min(8, split))[:, 0] < middle
    later = window_medians(excess[split:, None], 8)[:, 0] > middle
    return float(np.mean(earlier)) >= 0.8 and float(np.mean(later)) >= 0.8


def scatter_verdict(trace: Trace) -> StragglerVerdict | None:
    """Compute that differs between peers at random from step to step, in forward and backward alike."""
    compute = trace.total("forward", "backward")
    if compute is None:
        return None
    residual = _residual(compute, trace.topology)
    # A rank that became slower is spread over two levels; from step to step it is not.
    sigma = min(float(spread(residual)), float(spread(np.diff(residual, axis=0))) / np.sqrt(2))
    if np.isnan(sigma) or sigma < _SCATTER_SIGMA:
        return None
    forward, backward = trace.get("forward"), trace.get("backward")
    together = 1.0
    if forward is not None and backward is not None:
        together = _correlation(_residual(forward, trace.topology), _residual(backward, trace.topology))
    persistence = _correlation(residual[1:], residual[:-1])
    if together < _SCATTER_CORRELATION or persistence > 0.5:
        return None
    columns = [c for group in trace.topology.stage_columns().values() if len(group) > 1 for c in group]
    with np.errstate(invalid="ignore"):
        lost = float(np.expm1(nanmedian(np.nanmax(residual[:, columns], axis=1))))
    ranks = tuple(trace.topology.ranks[int(c)] for c in columns)
    return StragglerVerdict(
        "sequence_scatter",
        None,
        ranks,
        round(lost, 4),
        int(trace.steps[0]),
        confidence(sigma, _SCATTER_SIGMA, 5),
        f"compute of stage peers differs by {sigma:.1%} (robust sigma) from step to step, forward and "
        f"backward together (correlation {together:.2f}), "
        f"never the same ranks (lag-1 correlation {persistence:.2f}): "
        "uneven sequence lengths",
    )


def _residual(values: Floats, topology: Topology) -> Floats:
    """Log excess over peers without each rank's own level."""
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.log(values / peer_reference(values, topology))
    excess[~np.isfinite(excess)] = np.nan
    return excess - nanmedian(excess, axis=0)


def _correlation(first: Floats, second: Floats) -> float:
    known = ~(np.isnan(first) | np.isnan(second))
    if known.sum() < 8:
        return 0.0
    a, b = first[known], second[known]
    limit_a, limit_b = 4 * float(spread(a)) or 1.0, 4 * float(spread(b)) or 1.0
    a, b = np.clip(a, -limit_a, limit_a), np.clip(b, -limit_b, limit_b)
    deviation = float(a.std() * b.std())
    return float(((a - a.mean()) * (b - b.mean())).mean() / deviation) if deviation > 0 else 0.0
