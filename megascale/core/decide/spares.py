"""How many warm spares a job needs: ByteRobust's rule (arXiv 2509.16293).

So many that, in 99 of 100 days, no more nodes fail than there are spares. With about 0.12% of machines
failing a day this gives 2, 2, 3 and 4 for 128, 256, 512 and 1,024 machines, as published.
"""

from __future__ import annotations

import math
from typing import Final

_CONFIDENCE: Final = 0.99


def spares_for(
    nodes: int, failures_per_node_day: float, *, repair_days: float = 1.0, confidence: float = _CONFIDENCE
) -> int:
    """Smallest number of spares that covers the failures of `repair_days` with `confidence`.

    Args:
        failures_per_node_day: probability that a node fails on a day, 0 to 1.
        repair_days: how long a failed node stays away.
    """
    if nodes < 1 or not 0.0 <= failures_per_node_day <= 1.0 or repair_days <= 0 or not 0 < confidence < 1:
        raise ValueError(
            f"expected nodes >= 1, a probability, a positive time and a confidence, got "
            f"{nodes=}, {failures_per_node_day=}, {repair_days=}, {confidence=}"
        )
    p = 1.0 - math.pow(1.0 - failures_per_node_day, repair_days)
    if p >= 1.0:
        return nodes
    odds = p / (1.0 - p)
    # In logarithms: (1 - p) ** nodes underflows for large fleets.
    log_term = nodes * math.log1p(-p)
    covered = math.exp(log_term)
    spares = 0
    while covered < confidence and spares < nodes:
        log_term += math.log(odds * (nodes - spares) / (spares + 1))
        spares += 1
        covered += math.exp(log_term)
    return spares
