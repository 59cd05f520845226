"""The seam at which exits of ranks are recognised as injected: nothing, unless the manifest has faults."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from megascale.engine.context import RankLaunch
from megascale.job.faults import Fault
from megascale.observe.fault_markers import read_markers
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

Amend = Callable[[RankLaunch, pb.RankExit], None]
"""Changes what is told of an exit."""


def amendment_of(faults: Sequence[Fault], run: RunDir) -> Amend:
    """What is done to the exits of a launch before they are told."""
    if not faults:
        return leave_as_it_is

    def amend(launch: RankLaunch, report: pb.RankExit) -> None:
        """An exit by SIGKILL at a fault's hands was injected, at the time at which the fault fired."""
        if report.signal != signal.SIGKILL:
            return
        for marker in read_markers(run.faults):
            if (marker.rank, marker.attempt) == (launch.rank, launch.attempt):
                report.at, report.injected = marker.time, True
                return

    return amend


def leave_as_it_is(_launch: RankLaunch, _report: pb.RankExit) -> None:
    """Without faults in the manifest no exit was injected."""
