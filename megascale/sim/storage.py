"""Checkpoint storage: commits that land late, are told of twice, or never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from megascale.core.lineage import Commit
from megascale.sim.agenda import Agenda


@dataclass(slots=True)
class Storage:
    """What can be read, whoever wrote it. A commit is an exclusive create: the first one counts.

    Attributes:
        landed: commit -> when it became readable.
        damaged: commits whose bytes do not match their checksums.
        told: called once for every commit that lands.
    """

    agenda: Agenda
    landed: dict[Commit, float] = field(default_factory=dict)
    damaged: set[Commit] = field(default_factory=set)
    told: Callable[[Commit], None] = lambda _: None
    outage_until: float = 0.0

    def write(self, commit: Commit, after_s: float) -> None:
        """A commit under way: it lands even if its writer dies meanwhile."""
        when = max(self.agenda.now + after_s, self.outage_until)
        self.agenda.at(when, lambda: self.land(commit))

    def land(self, commit: Commit) -> None:
        if commit in self.landed:
            return
        self.landed[commit] = self.agenda.now
        self.told(commit)
