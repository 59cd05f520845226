"""Named points that a rank comes to in a step: the seam at which faults are injected, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megascale.engine.context import RankLaunch
from megascale.job.faults import Fault

AtPoint = Callable[[str, int], None]
"""Called with the name of a point ("step", "save" or "commit") and the step; may not return."""


def points_of(faults: Sequence[Fault], launch: RankLaunch) -> AtPoint:
    """What happens at the points of a launch: nothing, unless its manifest has faults."""
    if not faults:
        return pass_by
    from megascale.engine.faults import FaultInjector

    return FaultInjector(faults, launch).reach


def pass_by(_point: str, _step: int) -> None:
    """Nothing happens."""
