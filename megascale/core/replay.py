"""Dual-phase replay: which node computes wrong numbers, in two runs (arXiv 2509.16293, ByteRobust).

The job is split into groups that each replay the same steps with tensor and pipeline parallel sizes kept.
First into horizontal groups of m neighbouring nodes, then into vertical groups of nodes with equal number
modulo n: any horizontal and any vertical group share at most one unit, so the two groups that compute
something else name it. A unit is what holds whole pipelines: with m a multiple of the nodes of one pipeline.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """Both phases; each group is a tuple of nodes that replays alone."""

    horizontal: tuple[tuple[str, ...], ...]
    vertical: tuple[tuple[str, ...], ...]

    def convict(self, horizontal_bad: Collection[int], vertical_bad: Collection[int]) -> tuple[str, ...]:
        """Nodes in a bad group of both phases, by index of the groups; () = nothing was reproduced."""
        rows = {node for index in horizontal_bad for node in self.horizontal[index]}
        columns = {node for index in vertical_bad for node in self.vertical[index]}
        return tuple(
            node for group in self.horizontal for node in group if node in rows and node in columns
        )


def plan_replay(nodes: Sequence[str], *, pipeline_nodes: int) -> ReplayPlan:
    """Two partitions of `nodes` with about as many groups as units per group.

    Args:
        pipeline_nodes: nodes that hold one copy of the model; the smallest group that can replay.

    Raises:
        ValueError: the nodes are no whole number of such copies.
    """
    if pipeline_nodes < 1 or len(nodes) % pipeline_nodes or not nodes:
        raise ValueError(f"{len(nodes)} nodes are no whole number of pipelines of {pipeline_nodes} nodes")
    copies = len(nodes) // pipeline_nodes
    # Copies of the model are arranged in a table of rows x columns, as square as they divide.
    columns = next(c for c in range(_ceil_sqrt(copies), copies + 1) if copies % c == 0)
    units = [tuple(nodes[i : i + pipeline_nodes]) for i in range(0, len(nodes), pipeline_nodes)]
    horizontal = [units[i : i + columns] for i in range(0, copies, columns)]
    vertical = [units[i::columns] for i in range(columns)]
    return ReplayPlan(_flat(horizontal), _flat(vertical))


def _ceil_sqrt(number: int) -> int:
    return next(i for i in range(1, number + 1) if i * i >= number)


def _flat(groups: Sequence[Sequence[tuple[str, ...]]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(node for unit in group for node in unit) for group in groups)
