"""Reports at full detail: every agent sends its own heartbeats, with the records of its ranks."""

from __future__ import annotations

import random

from megascale.core.contract.events import NodeReport
from megascale.sim.event_queue import EventQueue
from megascale.sim.machines import Machine
from megascale.sim.network import Network
from megascale.sim.training import Run


class Heartbeats:
    """One NodeReport per agent and period, from a random phase on."""

    def __init__(self, queue: EventQueue, network: Network, rng: random.Random, period_s: float) -> None:
        self._queue, self._network, self._rng, self.period_s = queue, network, rng, period_s

    def joined(self, machine: Machine) -> None:
        incarnation = machine.agent
        self._queue.after(self._rng.uniform(0, self.period_s), lambda: self._beat(machine, incarnation))

    def silent(self, machine: Machine) -> None:
        """Nothing to do: its heartbeats stop by themselves."""

    def changed(self, run: Run) -> None:
        """Nothing to do: the next heartbeats report it."""

    def _beat(self, machine: Machine, incarnation: str) -> None:
        if not machine.power or machine.incarnation != incarnation:
            return
        if machine.linked:
            run = machine.run
            ranks = tuple(run.progress(rank, machine.skew_s) for rank in machine.ranks) if run else ()
            attempt = run.attempt if run else 0
            self._network.heartbeat(machine, NodeReport(machine.name, incarnation, attempt, ranks))
        self._queue.after(self.period_s, lambda: self._beat(machine, incarnation))
