"""Where nodes come from: a pool, a queue of requests, and repairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from megascale.sim.delays import Delays
from megascale.sim.event_queue import EventQueue
from megascale.sim.machines import Machine


@dataclass(slots=True)
class Fleet:
    """Grants free nodes at once, and what it owes when nodes come back.

    Attributes:
        pool: free machines, the longest free first.
        owed: how many more nodes were promised.
        granted: called with every machine that was handed over.
        closed_until: refuses everything until then.
    """

    queue: EventQueue
    delays: Delays
    granted: Callable[[Machine], None]
    pool: list[Machine] = field(default_factory=list)
    owed: int = 0
    avoid: frozenset[str] = frozenset()
    closed_until: float = 0.0

    def acquire(self, count: int, avoid: Iterable[str]) -> str:
        """Grant up to `count` nodes and owe the rest; a reason = refused."""
        if self.queue.now < self.closed_until:
            return "the fleet takes no requests now"
        self.avoid = frozenset(avoid)
        free = [machine for machine in self.pool if machine.power and self._is_wanted(machine)]
        if not free:
            return "no free node"
        self.owed = max(0, count - len(free))
        for machine in free[:count]:
            self._grant(machine)
        return ""

    def _is_wanted(self, machine: Machine) -> bool:
        return machine.checked or machine.name not in self.avoid

    def give_back(self, machine: Machine, after_s: float, *, checked: bool) -> None:
        """A node returns to the pool after being cleaned, or repaired and `checked`."""
        machine.held = False
        self.queue.after(after_s, lambda: self._returned(machine, checked))

    def _returned(self, machine: Machine, checked: bool) -> None:
        machine.checked = checked
        machine.power, machine.defect, machine.stuck = True, None, False
        if self.owed and self._is_wanted(machine):
            self.owed -= 1
            self.pool.append(machine)
            self._grant(machine)
        else:
            self.pool.append(machine)

    def _grant(self, machine: Machine) -> None:
        self.pool.remove(machine)
        machine.held = True
        self.granted(machine)
