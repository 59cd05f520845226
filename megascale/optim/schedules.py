"""Learning-rate schedules: pure functions of the step, so a resumed run needs no state of theirs."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    name: Literal["cosine", "constant"],
    peak: float,
    floor: float,
    warmup_steps: int,
    total_steps: int,
) -> float:
    """The learning rate of `step` (1-based).

    Linear warm-up reaches `peak` at step `warmup_steps`. After it "constant" stays there and "cosine"
    falls along half a cosine to `floor` at `total_steps`.

    Raises:
        ValueError: unknown name.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if name == "constant":
        return peak
    if name == "cosine":
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule {name!r}, expected 'cosine' or 'constant'")
