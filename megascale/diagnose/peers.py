"""Nodes held against each other: which is slower than the rest. Pure.

All nodes are measured once per sweep. What slows all of them in one sweep slows the peers too, so a node's
figure counts only in relation to its peers' in the same sweep, and its median over the sweeps is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, median_high


def ratios(sweeps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each node's speed in relation to its peers, the median over sweeps; 1.0 is as fast as they are.

    The peers' speed is the (high) median of the other nodes', so that half of them may be slow. A node
    without a peer, or that was not measured, is left out.

    Args:
        sweeps: speeds by node, higher is faster.
    """
    found: dict[str, list[float]] = {}
    for sweep in sweeps:
        for node, speed in sweep.items():
            others = [value for name, value in sweep.items() if name != node]
            if others:
                found.setdefault(node, []).append(speed / median_high(others))
    return {node: median(values) for node, values in found.items()}


def slow_nodes(found: Mapping[str, float], least: float) -> list[str]:
    """Nodes below the share `least` of their peers' speed."""
    return [node for node, ratio in found.items() if ratio < least]
