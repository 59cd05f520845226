"""Per-rank segment times as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from megascale.errors import DataError, InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEGMENTS: Final = ("forward", "backward", "allreduce", "send", "recv", "data", "optimizer")
_MAX_CELLS: Final = 200_000_000


@dataclass(frozen=True, slots=True)
class Topology:
    """Where ranks run: parallel arrays over columns, one column per rank.

    Attributes:
        ranks: rank numbers, ascending; nodes: node of each; stages: pipeline stage of each.
    """

    ranks: tuple[int, ...]
    nodes: tuple[str, ...]
    stages: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.ranks) == len(self.nodes) == len(self.stages):
            raise ValueError("ranks, nodes and stages must have the same length")

    def stage_columns(self) -> dict[int, Ints]:
        """Columns of each stage."""
        stages = np.asarray(self.stages)
        return {int(stage): np.flatnonzero(stages == stage) for stage in np.unique(stages)}

    def node_columns(self) -> dict[str, list[int]]:
        """Columns of each node, nodes in order of their first rank."""
        columns: dict[str, list[int]] = {}
        for column, node in enumerate(self.nodes):
            columns.setdefault(node, []).append(column)
        return columns


@dataclass(frozen=True, slots=True)
class Trace:
    """Segment times of one run.

    Attributes:
        steps: step numbers, ascending, shape (steps,).
        seconds: per segment an array (steps, ranks); NaN where a row is missing.
    """

    steps: Ints
    topology: Topology
    seconds: Mapping[str, Floats]

    def get(self, segment: str) -> Floats | None:
        """Times of a segment, or None where the trace has none."""
        return self.seconds.get(segment)

    def total(self, *segments: str) -> Floats | None:
        """Sum of those segments that the trace has; NaN where every one is missing."""
        present = [self.seconds[segment] for segment in segments if segment in self.seconds]
        if not present:
            return None
        stacked = np.stack(present)
        total: Floats = np.where(np.isnan(stacked).all(axis=0), np.nan, np.nansum(stacked, axis=0))
        return total


@dataclass(slots=True)
class TraceBuilder:
    """Collects rows in any order; rows of the same (step, rank, segment) are summed (micro-batches)."""

    _cells: dict[str, tuple[list[int], list[int], list[float]]] = field(default_factory=dict)
    _node: dict[int, str] = field(default_factory=dict)
    _stage: dict[int, int] = field(default_factory=dict)

    def add(
        self, step: int, rank: int, *, node: str, stage: int, segment: str, seconds: float, where: str
    ) -> None:
        """One row; `where` names it in errors (`file:line`).

        Raises:
            InputError: unknown segment.
            DataError: a negative or non-finite time, or a rank that is on two nodes or in two stages.
        """
        if segment not in SEGMENTS:
            raise InputError(f"{where}: segment {segment!r} is not one of {', '.join(SEGMENTS)}")
        if not 0.0 <= seconds < float("inf"):
            raise DataError(f"{where}: seconds is {seconds}, expected a finite number >= 0")
        if self._node.setdefault(rank, node) != node:
            raise DataError(
                f"{where}: rank {rank} is on node {node!r}, earlier on {self._node[rank]!r}; "
                "analyze each attempt on its own"
            )
        if self._stage.setdefault(rank, stage) != stage:
            raise DataError(f"{where}: rank {rank} is in stage {stage}, earlier in {self._stage[rank]}")
        steps, ranks, values = self._cells.setdefault(segment, ([], [], []))
        steps.append(step)
        ranks.append(rank)
        values.append(seconds)

    def build(self) -> Trace:
        """The trace of all rows.

        Raises:
            DataError: there are no rows, or too many to hold.
        """
        if not self._cells:
            raise DataError("no timings: expected rows of step,rank,node,stage,segment,seconds")
        ranks = sorted(self._node)
        steps = np.unique(np.concatenate([np.asarray(cell[0]) for cell in self._cells.values()]))
        if len(steps) * len(ranks) > _MAX_CELLS:
            raise DataError(
                f"{len(steps)} steps x {len(ranks)} ranks is more than {_MAX_CELLS} cells; "
                "analyze fewer steps at a time"
            )
        topology = Topology(
            tuple(ranks), tuple(self._node[r] for r in ranks), tuple(self._stage[r] for r in ranks)
        )
        seconds = {name: _matrix(cell, steps, ranks) for name, cell in self._cells.items()}
        return Trace(steps.astype(np.int64), topology, seconds)


def _matrix(cell: tuple[list[int], list[int], list[float]], steps: Ints, ranks: Sequence[int]) -> Floats:
    rows = np.searchsorted(steps, np.asarray(cell[0]))
    columns = np.searchsorted(np.asarray(ranks), np.asarray(cell[1]))
    matrix = np.zeros((len(steps), len(ranks)))
    np.add.at(matrix, (rows, columns), np.asarray(cell[2]))
    seen = np.zeros(matrix.shape, dtype=bool)
    seen[rows, columns] = True
    return np.where(seen, matrix, np.nan)
