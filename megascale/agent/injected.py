"""Marks exits of ranks as injected if a fault of the manifest caused them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

from megascale.engine.context import RankLaunch
from megascale.job.faults import Fault
from megascale.observe.fault_markers import read_markers
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

Amend = Callable[[RankLaunch, pb.RankExit], None]
"""Changes an exit report before it is sent to the driver."""


def amendment_of(faults: Sequence[Fault], run: RunDir) -> Amend:
    """Return the function that amends exit reports; without `faults` it changes nothing."""
    if not faults:
        return leave_as_it_is

    def amend(launch: RankLaunch, report: pb.RankExit) -> None:
        """Mark an exit by SIGKILL as injected, at the fault's time, if a fault fired on this rank."""
        if report.signal != signal.SIGKILL:
            return
        for marker in read_markers(run.faults):
            if (marker.rank, marker.attempt) == (launch.rank, launch.attempt):
                report.at, report.injected = marker.time, True
                return

    return amend


def leave_as_it_is(_launch: RankLaunch, _report: pb.RankExit) -> None:
    """Change nothing: without faults in the manifest no exit was injected."""
