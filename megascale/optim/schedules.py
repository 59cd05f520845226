"""Learning-rate schedules, pure functions of the step, so that a resumed run needs no state for them."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    name: Literal["cosine", "constant", "wsd"],
    peak: float,
    floor: float,
    warmup_steps: int,
    total_steps: int,
    decay_fraction: float = 0.2,
) -> float:
    """The learning rate of `step` (1-based).

    A linear warm-up reaches `peak` at step `warmup_steps`. After it "constant" stays at `peak`, and "cosine"
    falls along half a cosine to `floor` at `total_steps`. "wsd" (warm-up, stable, decay: Hu et al. 2024)
    stays at `peak` and falls linearly to `floor` over the last `decay_fraction` of the steps.

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
    if name == "wsd":
        decay_steps = min(decay_fraction * total_steps, total_steps - warmup_steps)
        left = min(1.0, max(0, total_steps - step) / decay_steps) if decay_steps > 0 else 1.0
        return floor + (peak - floor) * left
    raise ValueError(f"unknown schedule {name!r}, expected 'cosine', 'constant' or 'wsd'")
