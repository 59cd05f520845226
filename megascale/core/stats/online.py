"""Straggler detection while the job runs: bounded memory, one pass of vector operations per step.

The same rule as for whole traces (compute against stage peers, k of n windows), without hindsight. A stage on
one node has no peers elsewhere: its ratio to the other stages is compared with what it was. Memory: eight
rows and two short histories of one float per rank, about 4 MB at 12,288 ranks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from megascale.core.stats.compute import AMONG, MIN_SLOWDOWN, NATURAL_SPREAD, NEED, SIGMAS
from megascale.core.stats.robust import nanmedian, natural_spread, peer_reference, step_noise
from megascale.core.stats.trace import Floats, Topology
from megascale.core.stats.verdicts import confidence

_NOISE_WINDOWS: Final = 32
_LONE_SLOWDOWN: Final = 0.05  # a comparison with the past is less sure than one with peers


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Ranks of one node that have become slower than their stage peers; a probe has to confirm it.

    Attributes:
        slowdown: fraction; since_step: first step of the first window that showed it.
        reason: a sentence with the numbers.
    """

    node: str
    ranks: tuple[int, ...]
    slowdown: float
    since_step: int
    confidence: float
    reason: str


class StragglerDetector:
    """Feed it every step; it answers at the end of a window, once per node until the node is normal again.

    Args:
        window: steps per window; need, among: so many of the last windows must agree.
        min_slowdown: below this fraction nothing is suspected.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        window: int = 8,
        need: int = NEED,
        among: int = AMONG,
        min_slowdown: float = MIN_SLOWDOWN,
    ) -> None:
        self._topology = topology
        self._window = window
        self._need = need
        self.min_slowdown = min_slowdown  # may be changed while running
        self._rows = np.full((window, len(topology.ranks)), np.nan)
        self._filled = 0
        self._first_step = 0
        self._exceeds: deque[tuple[int, Floats]] = deque(maxlen=among)  # (first step, excess or 0)
        self._history: deque[Floats] = deque(maxlen=_NOISE_WINDOWS)
        self._stages = topology.stage_columns()
        self._suspected: set[int] = set()
        self._lone = _lone_stages(topology)
        self._ratios: deque[Floats] = deque(maxlen=_NOISE_WINDOWS)  # of the lone stages to the other stages

    def observe(self, step: int, seconds: Mapping[str, Floats]) -> list[Suspicion]:
        """Suspicions that begin with this step.

        Args:
            seconds: per segment one value per rank in the order of the topology, NaN = not reported.
        """
        if self._filled == 0:
            self._first_step = step
        self._rows[self._filled] = seconds["forward"] + seconds["backward"]
        self._filled += 1
        if self._filled < self._window:
            return []
        self._filled = 0
        return self._end_of_window()

    def reset(self) -> None:
        """Forget everything: a new attempt, a changed layout."""
        self._filled = 0
        self._exceeds.clear()
        self._history.clear()
        self._ratios.clear()
        self._suspected.clear()

    def _end_of_window(self) -> list[Suspicion]:
        medians = nanmedian(self._rows, axis=0)[None, :]
        excess = (medians / peer_reference(medians, self._topology) - 1.0)[0]
        self._history.append(excess)
        over = np.where(excess > self._limits(), excess, 0.0)
        for stage, shift in self._shifts(medians[0]).items():
            over[self._stages[stage]] = np.maximum(np.nan_to_num(over[self._stages[stage]]), shift)
        self._exceeds.append((self._first_step, np.nan_to_num(over)))
        if len(self._exceeds) < self._need:
            return []
        stacked = np.stack([row for _, row in self._exceeds])
        agree = (stacked > 0.0).sum(axis=0) >= self._need
        fresh = set(np.flatnonzero(agree).tolist()) - self._suspected
        self._suspected = set(np.flatnonzero(agree).tolist())
        return self._suspicions(fresh, stacked)

    def _limits(self) -> Floats:
        history = np.stack(self._history)
        limits = np.full(history.shape[1], np.inf)
        for columns in self._stages.values():
            windows = history[:, columns]
            noise = float(np.nan_to_num(nanmedian(step_noise(windows)))) if len(windows) > 1 else 0.0
            nodes = [self._topology.nodes[int(c)] for c in columns]
            natural = natural_spread(windows[-1], nodes)
            natural = NATURAL_SPREAD if np.isnan(natural) else natural
            limits[columns] = max(self.min_slowdown, SIGMAS * noise, SIGMAS * natural)
        return limits

    def _shifts(self, medians: Floats) -> dict[int, float]:
        """Lone stages that are slower against the other stages than they were, with by how much."""
        if not self._lone:
            return {}
        levels = {stage: float(nanmedian(medians[columns])) for stage, columns in self._stages.items()}
        ratios = [
            levels[stage] / float(nanmedian(np.asarray([v for other, v in levels.items() if other != stage])))
            for stage in self._lone
        ]
        self._ratios.append(np.asarray(ratios))
        history = np.stack(self._ratios)
        if len(history) <= self._need:
            return {}
        # The latest windows may be slow ones already, the baseline must not be.
        baseline = nanmedian(history[: max(self._need, len(history) - AMONG)], axis=0)
        shifts = history[-1] / baseline - 1.0
        limits = np.maximum(max(self.min_slowdown, _LONE_SLOWDOWN), SIGMAS * step_noise(history))
        return {
            stage: float(shift)
            for stage, shift, limit in zip(self._lone, shifts, limits, strict=True)
            if shift > limit
        }

    def _alone(self, columns: list[int]) -> bool:
        return {self._topology.stages[column] for column in columns} <= set(self._lone)

    def _suspicions(self, fresh: set[int], stacked: Floats) -> list[Suspicion]:
        by_node: dict[str, list[int]] = {}
        for column in sorted(fresh):
            by_node.setdefault(self._topology.nodes[column], []).append(column)
        found = []
        for node, columns in by_node.items():
            shown = stacked[:, columns].max(axis=1)
            since = next(step for (step, _), value in zip(self._exceeds, shown, strict=True) if value > 0)
            level = float(np.median(stacked[:, columns][stacked[:, columns] > 0]))
            agreeing = int((shown > 0).sum())
            ranks = tuple(self._topology.ranks[column] for column in columns)
            found.append(
                Suspicion(
                    node,
                    ranks,
                    round(level, 4),
                    since,
                    confidence(level, self.min_slowdown, agreeing),
                    f"rank {', '.join(map(str, ranks[:8]))} of {node}: forward+backward {level:.1%} above "
                    f"{'what was normal' if self._alone(columns) else 'stage peers'} in "
                    f"{agreeing} of the last {len(self._exceeds)} windows of {self._window} steps",
                )
            )
        return found


def _lone_stages(topology: Topology) -> list[int]:
    """Stages that live on one node, where there are other nodes."""
    if len(set(topology.nodes)) == 1:
        return []
    return [
        stage
        for stage, columns in topology.stage_columns().items()
        if len({topology.nodes[int(column)] for column in columns}) == 1
    ]
