"""Reports by event: one JobReport stands for all heartbeats until something changes.

A report says until when heartbeats and steps go on. When a run is blocked a new report replaces it, and
nodes without heartbeats are named. Quiet weeks therefore cost nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from megascale.core.contract.events import JobReport, NodeReport, RankProgress
from megascale.sim.machines import Machine
from megascale.sim.training import SOUND_LOSS

if TYPE_CHECKING:
    from megascale.sim.cluster import Cluster
    from megascale.sim.training import Run

FAR_S: Final = 1e8
_STALLED_PERIOD_S: Final = 5.0
_STEPS_OF_WRONG_NUMBERS: Final = 6


class Summary:
    """Reports for every agent of a Cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._best = 0
        self._soon = False
        self._absent: set[str] = set()

    def joined(self, machine: Machine) -> None:
        """A node joined: its own heartbeat ends its absence, later reports cover it."""
        if machine.name in self._absent:
            self._absent.discard(machine.name)
            if machine.incarnation is not None:
                self._cluster.network.heartbeat(machine, NodeReport(machine.name, machine.incarnation))
        self._say_soon()

    def silent(self, machine: Machine) -> None:
        """Name the node as absent from now on."""
        self._absent.add(machine.name)
        self.say()

    def changed(self, run: Run) -> None:
        """A milestone was passed, or steps stopped or went on again."""
        if run is not self._newest():
            return
        self.say()
        if run.blocked:
            self._best = max(self._best, run.position()[0])
            self._cluster.queue.after(_STALLED_PERIOD_S, lambda: self._stalled(run))
        elif run.is_stepping:
            self._report_recovery(run)
            if run.loss != SOUND_LOSS:
                for steps in range(1, _STEPS_OF_WRONG_NUMBERS + 1):
                    self._cluster.queue.after(steps * run.pace, self.say)

    def say(self) -> None:
        """One JobReport about the newest run."""
        run = self._newest()
        now = self._cluster.queue.now
        held = run is not None and bool(run.blocked) and self._is_hosted(run)
        report = JobReport(
            run.attempt if run else 0,
            run.progress() if run else RankProgress(0),
            quiet_until=run.blocked_at if run is not None and held else now + FAR_S,
            absent=tuple(sorted(self._absent)),
        )
        self._cluster.network.publish(report)

    def _newest(self) -> Run | None:
        runs = self._cluster.runs
        return runs[max(runs)] if runs else None

    def _is_hosted(self, run: Run) -> bool:
        machines = self._cluster.machines
        return any(machines[name].run is run for name in run.nodes)

    def _say_soon(self) -> None:
        """Report once for many nodes that join together."""
        if not self._soon:
            self._soon = True
            self._cluster.queue.after(1.0, self._say_now)

    def _say_now(self) -> None:
        self._soon = False
        self.say()

    def _stalled(self, run: Run) -> None:
        if run is self._newest() and run.blocked and self._is_hosted(run):
            self.say()
            self._cluster.queue.after(_STALLED_PERIOD_S, lambda: self._stalled(run))
        elif run is self._newest():
            self.say()

    def _report_recovery(self, run: Run) -> None:
        """Report when the lost steps have been made again."""
        step, _ = run.position()
        missing = self._best + 1 - step
        self._best = max(self._best, step)
        if missing > 0 and math.isfinite(run.pace):
            self._cluster.queue.after(missing * run.pace, lambda: self._caught_up(run))

    def _caught_up(self, run: Run) -> None:
        if run is self._newest() and not run.blocked:
            self.say()
            self._report_recovery(run)
