"""Invariants: what must hold after every event of every run, simulated or real.

Each invariant is a method whose name says what holds; it raises `ViolatedError` with the details.
"""

from __future__ import annotations

import json
from typing import Final

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import Command, FinishState, Timer
from megascale.core.eventlog import Entry
from megascale.core.machine import Core
from megascale.core.state.record import JobRecord, JobState, NodeStatus
from megascale.sim.driver import SimDriver
from megascale.sim.world import World

RECORD_LIMIT_BYTES: Final = 64 * 1024
HOUR_S: Final = 3600.0
_SLACK_S: Final = 1e-3
_TIMER_OF: Final = {
    JobState.LAUNCHING: (Timer.STARTUP,),
    JobState.STOPPING: (Timer.KILL,),
    JobState.SAVING: (Timer.SAVE, Timer.LEAVING),
    JobState.ASSEMBLING: (
        Timer.SHRINK,
        Timer.ACQUIRE_RETRY,
        Timer.ACQUIRED,
        Timer.RECONNECT,
        Timer.CHECK,
        Timer.BACKOFF,
    ),
}


class ViolatedError(AssertionError):
    """An invariant does not hold."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ViolatedError(message)


class Invariants:
    """Watches every entry of every driver life of one job, with a memory of its own."""

    def __init__(self) -> None:
        self.launches: dict[int, fx.Launch] = {}
        self.effects: dict[str, fx.Effect] = {}
        self.distrusted: set[Commit] = set()
        self.exclusions: list[float] = []
        self.excluded: set[str] = set()
        self.finished: fx.Finish | None = None

    def check(self, driver: SimDriver, entry: Entry) -> None:
        """Everything that must hold after `entry` was decided."""
        if driver.term < driver.store.term:
            return  # a fenced driver may believe anything: nothing it decides is written or performed
        core = driver.core
        self._remember(core, entry)
        for effect in entry.effects:
            self._says_why(effect)
            if isinstance(effect, fx.Launch):
                self._attempts_only_grow(effect)
                self._resume_is_readable_and_whole(driver, effect)
                self._steps_go_back_only_by_decision(effect)
                self._history_never_forks(effect)
                self._excluded_nodes_get_no_ranks(effect)
            elif isinstance(effect, fx.Exclude) and not isinstance(entry.event, ev.DriverStarted):
                self._exclusions_are_bounded(core, entry, effect)
            elif isinstance(effect, fx.Finish):
                self._ends_once_and_for_a_reason(effect)
        self._something_leaves_every_state(core)
        self._time_moves_on(core, entry)
        self._every_second_has_one_phase(core)
        self._restarts_are_bounded(core)
        if entry.effects:
            self._record_survives_a_crash(core)

    def _remember(self, core: Core, entry: Entry) -> None:
        self.distrusted.update(core.record.distrusted)
        match entry.event:
            case (
                ev.ManualCommand(command=Command.RELEASE, node=name) | ev.NodeJoined(node=name, checked=True)
            ):
                self.excluded.discard(name)

    def _says_why(self, effect: fx.Effect) -> None:
        """Every effect has a reason for people, and an id that no other effect has."""
        _require(bool(effect.reason), f"{type(effect).__name__} {effect.effect_id} has no reason")
        known = self.effects.setdefault(effect.effect_id, effect)
        same = known == effect or type(known) is type(effect)
        _require(same, f"{effect.effect_id} was {type(known).__name__}, is {type(effect).__name__}")

    def _attempts_only_grow(self, launch: fx.Launch) -> None:
        """An attempt's number is never used for two launches."""
        known = self.launches.get(launch.attempt)
        newest = max(self.launches, default=0)
        if known is None:
            _require(launch.attempt > newest, f"attempt {launch.attempt} after attempt {newest}")
            self.launches[launch.attempt] = launch
        else:
            same = (known.nodes, known.resume) == (launch.nodes, launch.resume)
            _require(same, f"attempt {launch.attempt} was launched as {known}, now as {launch}")

    def _resume_is_readable_and_whole(self, driver: SimDriver, launch: fx.Launch) -> None:
        """What is restored exists and was not found damaged."""
        if launch.resume is not None and launch.attempt == driver.core.record.attempt:
            landed = driver.cluster.storage.landed
            _require(launch.resume in landed, f"{launch.resume} was never committed")
            _require(launch.resume not in self.distrusted, f"{launch.resume} is known to be damaged")

    def _steps_go_back_only_by_decision(self, launch: fx.Launch) -> None:
        """An attempt resumes at least where its predecessor did, unless that commit is distrusted."""
        before = [attempt for attempt in self.launches if attempt < launch.attempt]
        previous = self.launches[max(before)].resume if before else None
        if previous is not None and previous not in self.distrusted:
            step = launch.resume.step if launch.resume else 0
            _require(step >= previous.step, f"attempt {launch.attempt} falls back behind {previous}")

    def _history_never_forks(self, launch: fx.Launch) -> None:
        """Walking back over what was launched, no commit is beyond the step where its attempt was cut."""
        limit, current = None, launch
        while current.resume is not None:
            commit = current.resume
            _require(commit.attempt < current.attempt, f"attempt {current.attempt} resumes from {commit}")
            cut = [
                other.resume.step if other.resume else 0
                for attempt, other in self.launches.items()
                if commit.attempt < attempt < launch.attempt and self._follows(other, commit.attempt)
            ]
            limit = min(cut, default=None)
            later = f"{commit} is on a branch that was cut at step {limit}"
            _require(limit is None or commit.step <= limit or commit.attempt == launch.attempt, later)
            current = self.launches[commit.attempt]

    def _follows(self, launch: fx.Launch, attempt: int) -> bool:
        """Whether `launch` continues the history of `attempt` at all, or replaces its tail."""
        return launch.resume is None or launch.resume.attempt <= attempt

    def _excluded_nodes_get_no_ranks(self, launch: fx.Launch) -> None:
        used = sorted(self.excluded.intersection(launch.nodes))
        fresh = self.launches[launch.attempt] is launch
        _require(not (used and fresh), f"attempt {launch.attempt} puts ranks on excluded {used}")

    def _exclusions_are_bounded(self, core: Core, entry: Entry, effect: fx.Exclude) -> None:
        """Automation excludes at most so many nodes an hour; those that a person excluded do not count."""
        self.excluded.add(effect.node)
        if isinstance(entry.event, ev.ManualCommand):
            return
        self.exclusions = [at for at in self.exclusions if at > entry.at - HOUR_S] + [entry.at]
        bound = core.policy.max_nodes_per_hour
        _require(len(self.exclusions) <= bound, f"{len(self.exclusions)} exclusions within an hour")

    def _ends_once_and_for_a_reason(self, finish: fx.Finish) -> None:
        known = self.finished
        _require(known is None or known.state == finish.state, f"ended as {known}, then as {finish}")
        self.finished = finish

    def completed_means_all_steps(self, world: World) -> None:
        """A job that says it completed has an attempt on its own history that made every step."""
        record = world.driver.core.record
        if record.finish_state == FinishState.COMPLETED:
            run = world.cluster.runs[record.attempt]
            _require(run.step >= run.work.steps, f"completed after step {run.step} of {run.work.steps}")

    def _something_leaves_every_state(self, core: Core) -> None:
        """Every state but FINISHED has a timer, or agents that are watched, to leave it."""
        record = core.record
        state = record.state
        wanted = _TIMER_OF.get(state)
        if wanted is not None:
            armed = any(name in record.deadlines for name in wanted) or (
                state is JobState.ASSEMBLING and _awaits_a_verdict(core)
            )
            _require(armed, f"{state} without any of the timers {wanted}: {sorted(record.deadlines)}")
        elif state is JobState.RUNNING:
            watched = bool(core.live.silence) or Timer.HANG in record.deadlines
            _require(watched, "running, but nobody watches the nodes")
        elif state is JobState.DIAGNOSING and "hang" not in core.policy.shadow:
            armed = Timer.FLAP in record.deadlines or Timer.EVIDENCE in record.deadlines
            _require(armed, "diagnosing without a timer")

    def _time_moves_on(self, core: Core, entry: Entry) -> None:
        """A timer that was due is removed or moved, so that ticks do not repeat without end."""
        due = core.next_deadline()
        if isinstance(entry.event, ev.Tick) and due is not None:
            _require(due > entry.at - _SLACK_S, f"a timer is still due at {due}, now {entry.at}")

    def _every_second_has_one_phase(self, core: Core) -> None:
        ledger = core.record.ledger
        _require(all(s >= -1e-6 for s in ledger.seconds.values()), f"negative phase: {ledger.seconds}")
        charged = ledger.since - ledger.started_at if ledger.started_at else 0.0
        off_s = abs(ledger.wall_s() - charged)
        _require(off_s < _SLACK_S, f"phases sum to {ledger.wall_s()} s over {charged} s")

    def _restarts_are_bounded(self, core: Core) -> None:
        total = sum(core.record.restarts.values())
        _require(total <= core.policy.max_restarts, f"{total} restarts of {core.policy.max_restarts}")

    def _record_survives_a_crash(self, core: Core) -> None:
        """The snapshot is small, is JSON, and a core restored from it has the same record."""
        text = json.dumps(core.snapshot())
        _require(len(text) <= RECORD_LIMIT_BYTES, f"the record has {len(text)} bytes")
        restored = Core.restore(core.policy, json.loads(text)).record
        _require(restored == core.record, f"restored differs: {_difference(restored, core.record)}")


def _awaits_a_verdict(core: Core) -> bool:
    """Whether a node is watched that may yet turn out usable or lost."""
    return any(node.status in (NodeStatus.SUSPECT, NodeStatus.UNKNOWN) for node in core.live.nodes.values())


def _difference(one: JobRecord, other: JobRecord) -> str:
    names = [name for name in JobRecord.__dataclass_fields__ if getattr(one, name) != getattr(other, name)]
    return ", ".join(f"{name}: {getattr(one, name)!r} / {getattr(other, name)!r}" for name in names)
