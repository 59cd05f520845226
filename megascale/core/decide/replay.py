"""Dual-phase replay: which node computes wrong numbers, in two runs (arXiv 2509.16293, ByteRobust).

The job of N nodes is split into groups that each replay the same steps with fewer data-parallel copies,
tensor and pipeline sizes kept. First horizontally: node x is in group x // m; then vertically: in group
x mod n, where m = k x pipeline nodes and n = N / m. Groups of both phases hold m nodes. Where m <= n, a
horizontal and a vertical group share one node: the two groups whose results differ name the faulty node.
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
        return tuple(node for group in self.horizontal for node in group if node in rows & columns)

    def instructions(self) -> str:
        """What a person does to find the node."""
        groups, size = len(self.horizontal), len(self.horizontal[0])
        nodes = f"{size} node{'s' if size > 1 else ''}"
        return (
            f"replay the steps on {groups} groups of {nodes}, first neighbours in rank order, then "
            f"every {_ordinal(groups)} node: the two groups with other numbers share the node that computes "
            "them"
        )


def _ordinal(number: int) -> str:
    """`number` as 1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def plan_replay(nodes: Sequence[str], *, pipeline_nodes: int) -> ReplayPlan:
    """The two partitions, with the largest groups that still name a single node.

    Args:
        nodes: in rank order; pipeline_nodes: nodes that hold one copy of the model.

    Raises:
        ValueError: the nodes are no whole number of such copies.
    """
    if pipeline_nodes < 1 or not nodes or len(nodes) % pipeline_nodes:
        raise ValueError(f"{len(nodes)} nodes are no whole number of pipelines of {pipeline_nodes} nodes")
    copies = len(nodes) // pipeline_nodes
    divisors = [k for k in range(1, copies + 1) if copies % k == 0]
    # k = 1 where no k gives m <= n: then the two groups share a few nodes, and all of them are suspects.
    k = max((k for k in divisors if k * pipeline_nodes <= copies // k), default=1)
    size, groups = k * pipeline_nodes, copies // k
    return ReplayPlan(
        horizontal=tuple(tuple(nodes[g * size : (g + 1) * size]) for g in range(groups)),
        vertical=tuple(tuple(nodes[g::groups]) for g in range(groups)),
    )
