"""The simulated network: messages come late, twice, out of order, or not at all.

Heartbeats may be dropped, doubled and overtaken. Everything else travels on one stream per agent: in order,
and lost only when the stream breaks, after which the agent joins again and repeats its exits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from megascale.core.contract.events import Event
from megascale.sim.delays import Delays
from megascale.sim.event_queue import EventQueue
from megascale.sim.machines import Machine

_ORDER_S = 1e-6


@dataclass(frozen=True, slots=True)
class Loss:
    """Probabilities per message."""

    drop: float = 0.0
    duplicate: float = 0.0


class Network:
    """Delivers to the driver that is alive at the time of delivery."""

    def __init__(self, queue: EventQueue, delays: Delays, rng: random.Random, loss: Loss) -> None:
        self._queue, self._delays, self._rng, self.loss = queue, delays, rng, loss
        self.driver: Callable[[Event], None] | None = None

    def heartbeat(self, machine: Machine, event: Event) -> None:
        """Send a heartbeat, which may be lost, doubled or overtaken."""
        if self._rng.random() < self.loss.drop:
            return
        copies = 2 if self._rng.random() < self.loss.duplicate else 1
        for _ in range(copies):
            self._queue.after(self._delays.sample("network"), lambda: self._arrive(machine, event))

    def send(self, machine: Machine, event: Event) -> None:
        """Send an event on the agent's stream."""
        when = max(self._queue.now + self._delays.sample("network"), machine.delivered_at + _ORDER_S)
        machine.delivered_at = when
        self._queue.at(when, lambda: self._arrive(machine, event))
        if self._rng.random() < self.loss.duplicate:
            self._queue.at(when + _ORDER_S / 2, lambda: self._arrive(machine, event))

    def command(self, machine: Machine, action: Callable[[Machine], None]) -> None:
        """From the driver to an agent, on its stream; nothing happens if it cannot be reached then."""
        when = max(self._queue.now + self._delays.sample("network"), machine.delivered_at + _ORDER_S)
        machine.delivered_at = when
        self._queue.at(when, lambda: action(machine) if machine.reachable else None)

    def publish(self, event: Event) -> None:
        """Deliver an event that does not come from an agent: storage, the fleet, a person."""
        copies = 2 if self._rng.random() < self.loss.duplicate else 1
        for _ in range(copies):
            self._queue.after(self._delays.sample("network"), lambda: self._deliver(event))

    def _arrive(self, machine: Machine, event: Event) -> None:
        if machine.linked:
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        if self.driver is not None:
            self.driver(event)
