"""What the straggler analysis says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["slow_node", "slow_link", "stage_imbalance", "sequence_scatter", "host_pause", "data_stall"]


@dataclass(frozen=True, slots=True)
class StragglerVerdict:
    """One finding.

    Attributes:
        node: at fault; None where no single node is.
        ranks: those that show it, ascending.
        slowdown: fraction of time lost against normal: 0.1 = 10% slower.
        since_step: first step that shows it.
        confidence: 0-1.
        reason: a sentence with the numbers.
    """

    kind: Kind
    node: str | None
    ranks: tuple[int, ...]
    slowdown: float
    since_step: int
    confidence: float
    reason: str


def confidence(level: float, threshold: float, windows: int) -> float:
    """0.5 at the threshold, towards 1 with distance and with the number of windows that agree."""
    distance = max(level / max(threshold, 1e-9) - 1.0, 0.0)
    return round(min(0.99, (0.5 + 0.5 * distance / (0.5 + distance)) * min(1.0, 0.6 + 0.1 * windows)), 3)
