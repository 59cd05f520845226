"""Learning-rate schedules, pure functions of the step, so that a resumed run needs no state for them."""

from __future__ import annotations

import math
from typing import Literal

from megascale.job.megatron import Optimizer


def learning_rate(
    step: int,
    *,
    name: Literal["cosine", "constant", "wsd"],
    peak: float,
    floor: float,
    warmup_steps: int,
    decay_steps: int,
    decay_fraction: float = 0.2,
) -> float:
    """The learning rate of `step` (1-based).

    A linear warm-up reaches `peak` at step `warmup_steps`. After it "constant" stays at `peak`, and "cosine"
    falls along half a cosine to `floor` at `decay_steps`. "wsd" (warm-up, stable, decay: Hu et al. 2024)
    stays at `peak` and falls linearly to `floor` over the last `decay_fraction` of `decay_steps`. Both
    stay at `floor` after `decay_steps`.

    Raises:
        ValueError: unknown name.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if name == "constant":
        return peak
    if name == "cosine":
        progress = min(1.0, (step - warmup_steps) / max(1, decay_steps - warmup_steps))
        return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if name == "wsd":
        span = min(decay_fraction * decay_steps, decay_steps - warmup_steps)
        left = min(1.0, max(0, decay_steps - step) / span) if span > 0 else float(step <= decay_steps)
        return floor + (peak - floor) * left
    raise ValueError(f"unknown schedule {name!r}, expected 'cosine', 'constant' or 'wsd'")


def scheduled_rate(step: int, optimizer: Optimizer, steps: int) -> float:
    """The learning rate of `step` (1-based) in a job of `steps` steps."""
    schedule = optimizer.schedule
    return learning_rate(
        step,
        name=schedule.name,
        peak=optimizer.lr,
        floor=optimizer.min_lr,
        warmup_steps=schedule.warmup_steps,
        decay_steps=schedule.decay_steps or steps,
        decay_fraction=schedule.decay_fraction,
    )
