"""A simulated driver, which does what the real one does: step, log, record, then the effects.

It can be made to die before it writes the record or between any two effects, and it stops when it finds a
higher term in the record.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.codec import Json
from megascale.core.contract.policy import Policy
from megascale.core.eventlog import Entry
from megascale.core.machine import Core
from megascale.sim.cluster import Cluster
from megascale.sim.effects import perform
from megascale.sim.event_queue import Timer


@dataclass(slots=True)
class RecordStore:
    """The stored job record, and the policy: all that outlives a driver.

    Attributes:
        lazy: drivers never die of themselves, so a record is encoded only when the next one reads it.
    """

    policy: Policy
    lazy: bool = False
    term: int = 0
    _snapshot: Json = None
    _source: Core | None = None

    def write(self, term: int, core: Core) -> bool:
        """Compare-and-swap on the term; False = a newer driver owns the record."""
        if term < self.term:
            return False
        self._source = core
        if not self.lazy:
            self._snapshot = core.snapshot()
        return True

    def read(self) -> Core:
        """A core as of the last write."""
        if self.lazy and self._source is not None:
            self._snapshot = self._source.snapshot()
        return Core(self.policy) if self._snapshot is None else Core.restore(self.policy, self._snapshot)


@dataclass(slots=True)
class Cut:
    """Where a driver dies: at its `effect`-th effect, before the record write if `unwritten`."""

    effect: int = -1
    unwritten: bool = False


Observer = Callable[["SimDriver", Entry], None]


class SimDriver:
    """Performs effects on a Cluster.

    Attributes:
        skew_s: this driver's clock is ahead of true time by this.
        on_death: called once when it was cut off or fenced.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: RecordStore,
        observer: Observer,
        on_death: Callable[[SimDriver], None],
        *,
        skew_s: float = 0.0,
        cut: Cut | None = None,
    ) -> None:
        self.cluster, self.store, self._observer, self._on_death = cluster, store, observer, on_death
        self.term = store.term + 1
        store.term = self.term
        self.core = store.read()
        self.alive, self.skew_s, self.cut = True, skew_s, cut or Cut()
        self.performed = 0
        self._tick: Timer | None = None
        self._scanned: set[tuple[int, int]] = set()
        self._scanned_until = 0
        self._missed: list[ev.Event] | None = None
        self._slept_at = 0.0

    def start(self) -> None:
        self.feed(ev.DriverStarted(self.term))

    def die(self) -> None:
        if self.alive:
            self.alive = False
            if self._tick is not None:
                self._tick.cancel()
            self._on_death(self)

    def sleep(self) -> None:
        """The host freezes the driver; what arrives meanwhile is processed when it wakes."""
        self._missed, self._slept_at = [], self.clock

    def wake(self) -> None:
        missed, self._missed = self._missed, None
        self.feed(ev.DriverPaused(self.clock - self._slept_at))
        for event in missed or ():
            self.feed(event)
        self.feed(ev.Tick())

    @property
    def clock(self) -> float:
        return self.cluster.queue.now + self.skew_s

    def feed(self, event: ev.Event) -> None:
        """Run one event through the core and carry out its effects."""
        if not self.alive:
            return
        if self._missed is not None:
            self._missed.append(event)
            return
        if isinstance(event, ev.CommitDone):
            self._scanned.add((event.step, event.attempt))
        at = self.clock
        effects = self.core.step(event, at)
        if self.core.must_store:
            if self._is_cut(effects, unwritten=True) or not self.store.write(self.term, self.core):
                self.die()
                return
            self.store.policy = self.core.policy
        self._observer(self, Entry(at, event, tuple(effects)))
        for effect in effects:
            if self._is_cut([effect], unwritten=False):
                self.die()
                return
            self.performed += 1
            perform(self, effect)
        self._arm()

    def _is_cut(self, effects: list[fx.Effect], *, unwritten: bool) -> bool:
        if self.cut.unwritten is not unwritten or self.cut.effect < 0:
            return False
        return self.performed + (len(effects) if unwritten else 1) > self.cut.effect

    def _arm(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        due = self.core.next_deadline()
        self._tick = None if due is None else self.cluster.queue.at(due - self.skew_s, self._due)

    def _due(self) -> None:
        self.feed(ev.Tick())

    # What carrying out effects needs

    def later(self, stage: str, event: ev.Event) -> None:
        """Feed an answer after a delay, if this driver is still alive."""
        cluster = self.cluster
        for _ in range(2 if cluster.delays.rng.random() < cluster.network.loss.duplicate else 1):
            cluster.queue.after(cluster.delays.sample(stage), functools.partial(self.feed, event))

    def done(self, effect: fx.Effect, stage: str = "answer") -> None:
        self.later(stage, ev.EffectDone(effect.effect_id))

    def scan_storage(self) -> None:
        """Feed commits that nobody reported, and the snapshot in memory, before anything is restored."""
        cluster = self.cluster
        run = cluster.runs.get(self.core.record.attempt)
        held = run.memory_commit() if run is not None else None
        storage = cluster.storage
        if held is not None:
            storage.keep_silently(held)
        unseen, self._scanned_until = storage.history[self._scanned_until :], len(storage.history)
        for commit in sorted(unseen):
            if (commit.step, commit.attempt) not in self._scanned:
                self.feed(ev.CommitDone(commit.step, commit.attempt, storage.landed[commit]))
