"""Compare nodes with each other: which is slower than the rest. Pure.

All nodes are measured once per pass. What slows all of them in one pass slows the peers too, so a node's
figure counts only in relation to its peers' in the same pass. It is slow if it stays behind in three of four
passes: something else that runs on the machine slows a pass or two, a bad part every one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median_high
from typing import Final

_PASSES: Final = 0.75


def shares(passes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each node's speed as a share of its peers', the upper quartile over passes; 1.0 is as fast as they are.

    The peers' speed is the (high) median of the other nodes', so that half of them may be slow. A node
    without a peer, or that was not measured, is left out.

    Args:
        passes: speeds by node, higher is faster.
    """
    found: dict[str, list[float]] = {}
    for speeds in passes:
        for node, speed in speeds.items():
            others = [value for name, value in speeds.items() if name != node]
            if others:
                found.setdefault(node, []).append(speed / median_high(others))
    return {node: sorted(values)[round(_PASSES * (len(values) - 1))] for node, values in found.items()}
