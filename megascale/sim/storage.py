"""Simulated checkpoint storage: commits become readable late, and are reported once, twice or never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from megascale.core.contract.lineage import Commit
from megascale.sim.event_queue import EventQueue


@dataclass(slots=True)
class Storage:
    """The commits that can be read. A commit is an exclusive create: the first of its kind counts.

    Attributes:
        landed: commit -> when it became readable; history: the same in order.
        damaged: commits whose bytes do not match their checksums.
        on_landed: called once for every commit that becomes readable.
    """

    queue: EventQueue
    landed: dict[Commit, float] = field(default_factory=dict)
    history: list[Commit] = field(default_factory=list)
    damaged: set[Commit] = field(default_factory=set)
    on_landed: Callable[[Commit], None] = lambda _: None
    outage_until: float = 0.0

    def write(self, commit: Commit, after_s: float) -> None:
        """Write a commit; it becomes readable even if its writer dies meanwhile."""
        when = max(self.queue.now + after_s, self.outage_until)
        self.queue.at(when, lambda: self.land(commit))

    def land(self, commit: Commit) -> None:
        """The commit is readable from now on; calls `on_landed`."""
        if self.keep_silently(commit):
            self.on_landed(commit)

    def keep_silently(self, commit: Commit) -> bool:
        """The same without calling `on_landed`; returns False if it was there already."""
        if commit in self.landed:
            return False
        self.landed[commit] = self.queue.now
        self.history.append(commit)
        return True
