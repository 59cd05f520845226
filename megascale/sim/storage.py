"""Checkpoint storage: commits that land late, are told of twice, or never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from megascale.core.contract.lineage import Commit
from megascale.sim.event_queue import EventQueue


@dataclass(slots=True)
class Storage:
    """What can be read, whoever wrote it. A commit is an exclusive create: the first one counts.

    Attributes:
        landed: commit -> when it became readable; history: the same in order.
        damaged: commits whose bytes do not match their checksums.
        told: called once for every commit that lands.
    """

    queue: EventQueue
    landed: dict[Commit, float] = field(default_factory=dict)
    history: list[Commit] = field(default_factory=list)
    damaged: set[Commit] = field(default_factory=set)
    told: Callable[[Commit], None] = lambda _: None
    outage_until: float = 0.0

    def write(self, commit: Commit, after_s: float) -> None:
        """A commit under way: it lands even if its writer dies meanwhile."""
        when = max(self.queue.now + after_s, self.outage_until)
        self.queue.at(when, lambda: self.land(commit))

    def land(self, commit: Commit) -> None:
        """It is readable from now on, and whoever listens is told."""
        if self.keep_silently(commit):
            self.told(commit)

    def keep_silently(self, commit: Commit) -> bool:
        """The same without telling; False if it was there already."""
        if commit in self.landed:
            return False
        self.landed[commit] = self.queue.now
        self.history.append(commit)
        return True
