"""How often to save, by Young's optimum: from the cost of a save and the failure rate of the job.

Young 1974: the loss is least at an interval of sqrt(2 x save cost x mean time between failures), here never
so short that saving costs more than 1%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from megascale.core.state.context import StepContext

DAY_S: Final = 86400.0
_STALL_SHARE: Final = 0.01
_LONGEST_S: Final = 3600.0
_PRIOR_FAILURES: Final = 2.0


@dataclass(frozen=True, slots=True)
class Cadence:
    """Steps between checkpoints, the time that takes, and why."""

    steps: int
    interval_s: float
    reason: str


def choose(*, save_s: float, step_s: float, mtbf_s: float) -> Cadence:
    """The cadence for a save that blocks `save_s`, steps of `step_s`, a failure every `mtbf_s` on average."""
    if step_s <= 0 or mtbf_s <= 0 or save_s < 0:
        raise ValueError(f"expected positive times, got {save_s=}, {step_s=}, {mtbf_s=}")
    optimum_s = math.sqrt(2.0 * save_s * mtbf_s)
    interval_s = min(_LONGEST_S, max(optimum_s, save_s / _STALL_SHARE, step_s))
    steps = max(1, round(interval_s / step_s))
    return Cadence(
        steps,
        steps * step_s,
        f"every {steps} steps ({steps * step_s:.0f} s): a save blocks {save_s:.2f} s, a failure comes every "
        f"{mtbf_s / 3600.0:.1f} h, the least is lost at {optimum_s:.0f} s, and saving may cost 1% at most",
    )


def mtbf_s(failures: int, wall_s: float, *, nodes: int, node_failures_per_day: float) -> float:
    """Mean time between failures of a job: its own count, tempered by the rate expected of its nodes.

    The expectation weighs as much as two failures of the job's own (a gamma prior).
    """
    expected_s = DAY_S / (nodes * node_failures_per_day)
    return (_PRIOR_FAILURES * expected_s + wall_s) / (_PRIOR_FAILURES + failures)


def measured(ctx: StepContext) -> Cadence | None:
    """The cadence by this job's own figures; None before its first save."""
    record, step_s = ctx.record, ctx.record.clock.step_s()
    if step_s is None or not record.saves.count:
        return None
    between_s = mtbf_s(
        record.failures,
        record.ledger.wall_s(),
        nodes=ctx.policy.nodes,
        node_failures_per_day=ctx.policy.node_failures_per_day,
    )
    return choose(save_s=record.saves.stall_s / record.saves.count, step_s=step_s, mtbf_s=between_s)
