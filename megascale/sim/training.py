"""One attempt as it really runs: all ranks in lock-step, so the slowest sets the pace."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from megascale.core.contract.events import RankProgress
from megascale.core.contract.lineage import Commit
from megascale.core.contract.vocabulary import Milestone, RankPhase
from megascale.sim.delays import Delays
from megascale.sim.event_queue import EventQueue, Timer
from megascale.sim.storage import Storage

_DELAYS: Final = {Milestone.GROUPS: "groups", Milestone.LOADED: "load", Milestone.FIRST_STEP: "firstStep"}
SOUND_LOSS = 2.0
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained.

    Attributes:
        steps: the job is done after this step; step_s: duration of one.
        every_steps: steps between durable checkpoints; save_stall_s: ranks are blocked by each.
        memory_every: steps between memory snapshots that outlive any one node, 0 = none.
        memory_stall_s: blocked by each of them.
        step_noise: standard deviation of a step as a share of it; 0 = steps are exact and quick to skip.
    """

    steps: int
    step_s: float
    every_steps: int
    save_stall_s: float = 0.0
    memory_every: int = 0
    memory_stall_s: float = 0.0
    step_noise: float = 0.0

    @property
    def paced_s(self) -> float:
        """A step with its share of the memory snapshots."""
        return self.step_s + (self.memory_stall_s / self.memory_every if self.memory_every else 0.0)


class Watcher(Protocol):
    """Notified of changes of a run."""

    def run_changed(self, run: Run) -> None: ...

    def ranks_left(self, run: Run, exit_code: int) -> None: ...

    def load_failed(self, run: Run, commit: Commit) -> None: ...


class Run:
    """The ranks of one attempt.

    Attributes:
        reached: milestone -> when the slowest rank passed it.
        place: node -> its place in rank order.
        blocked: reasons why no step can be completed, since `blocked_at`.
        step: last completed step as of `anchor_at`; `position` gives it for any time.
    """

    def __init__(
        self,
        attempt: int,
        nodes: tuple[str, ...],
        resume: Commit | None,
        *,
        work: Workload,
        queue: EventQueue,
        delays: Delays,
        storage: Storage,
        watcher: Watcher,
    ) -> None:
        self.attempt, self.nodes, self.resume = attempt, nodes, resume
        self.place = {name: place for place, name in enumerate(nodes)}
        self.work, self._queue, self._delays = work, queue, delays
        self._storage, self._watcher = storage, watcher
        self.forked: set[str] = set()
        self.reached: dict[str, float] = {}
        self.blocked: set[str] = set()
        self.blocked_at = queue.now
        self.step = resume.step if resume else 0
        self.anchor_at = queue.now
        self.stall_s = 0.0
        self.pace = work.paced_s
        self.slowdown = 1.0
        self.ended = False
        self.announced = False
        self.loss = SOUND_LOSS
        self.progressed_at = queue.now
        self._timer: Timer | None = None
        self._left_over_s: float | None = None
        self._save_pending: bool | None = None
        self._saving = False

    # Membership of the run

    def forked_on(self, node: str) -> None:
        self.forked.add(node)
        if len(self.forked) == len(self.nodes):
            self._go_on()

    def lost(self, node: str) -> None:
        """The ranks of a node are gone: this attempt can never complete another step."""
        if not self.ended:
            self.block(f"lost {node}")

    def block(self, why: str) -> None:
        """Complete nothing until `unblock`; a step under way is continued then."""
        if self.ended or why in self.blocked:
            return
        if self.blocked:
            self.blocked.add(why)
            return
        self._freeze()
        self.blocked.add(why)
        self.blocked_at = self._queue.now
        self._watcher.run_changed(self)

    def unblock(self, why: str) -> None:
        if why in self.blocked:
            self.blocked.discard(why)
            if not self.blocked and not self.ended:
                self._go_on()
                self._watcher.run_changed(self)

    def end(self) -> None:
        """End the run: its processes are gone."""
        self.ended = True
        self._cancel()

    def request_save(self, *, then_stop: bool) -> None:
        """Save after the coming step, and leave after it if asked."""
        self._save_pending = then_stop or bool(self._save_pending)
        if self.is_stepping and not self.blocked:
            self._freeze()
            self._go_on()

    def poison(self, loss: float) -> None:
        """The ranks, sound until now, report this loss from the next step on."""
        self._watcher.run_changed(self)
        self.loss = loss
        self._watcher.run_changed(self)

    def set_slowdown(self, factor: float) -> None:
        """Every step takes `factor` x as long from now on."""
        moving = self.is_stepping and not self.blocked
        if moving:
            self._freeze()
        self.slowdown = factor
        if moving:
            self._left_over_s = None
            self._go_on()

    # Where it stands

    @property
    def is_stepping(self) -> bool:
        return Milestone.FIRST_STEP in self.reached and not self.ended

    def position(self) -> tuple[int, float]:
        """Last completed step and when it was completed."""
        if not self.is_stepping or self.blocked or self._saving or self._timer is None:
            return self.step, self.progressed_at
        done = max(0, math.floor((self._queue.now - self.anchor_at) / self.pace + _SLACK))
        if not done:
            return self.step, self.progressed_at
        return self.step + done, self.anchor_at + done * self.pace

    def progress(self, rank: int = 0, skew_s: float = 0.0) -> RankProgress:
        """The rank record of any rank: lock-step makes them alike."""
        step, at = self.position()
        shifted = {name: at + skew_s for name, at in self.reached.items()}
        return RankProgress(
            rank,
            step=step,
            phase=RankPhase.FORWARD if self.is_stepping else RankPhase.STARTUP,
            progress_at=at + skew_s if step > (self.resume.step if self.resume else 0) else 0.0,
            step_seconds=self.pace if Milestone.FIRST_STEP in self.reached else 0.0,
            stall_seconds=self.stall_s + self._memory_stall_s(step),
            groups_at=shifted.get(Milestone.GROUPS, 0.0),
            loaded_at=shifted.get(Milestone.LOADED, 0.0),
            first_step_at=shifted.get(Milestone.FIRST_STEP, 0.0),
            loss=self.loss if Milestone.FIRST_STEP in self.reached else None,
        )

    def _memory_stall_s(self, step: int) -> float:
        work = self.work
        taken = step - (self.resume.step if self.resume else 0)
        return taken * work.memory_stall_s / work.memory_every if work.memory_every else 0.0

    def memory_commit(self) -> Commit | None:
        """The newest snapshot held in the memory of other nodes."""
        every = self.work.memory_every
        if not every or Milestone.FIRST_STEP not in self.reached:
            return None
        step = self.position()[0] // every * every
        return Commit(step, self.attempt) if step > (self.resume.step if self.resume else 0) else None

    # Progress: one timer at a time

    def _go_on(self) -> None:
        if self.ended or self.blocked or len(self.forked) < len(self.nodes):
            return
        missing = next((name for name in _DELAYS if name not in self.reached), None)
        if missing is not None:
            self._arm(self._delays.sample(_DELAYS[missing]), lambda: self._reach(missing))
            return
        left_over, self._left_over_s = self._left_over_s, None
        if self.work.step_noise:
            noise = max(0.5, self._delays.rng.gauss(1.0, self.work.step_noise))
            self.pace = self.work.paced_s * noise * self.slowdown
            ahead = 1
        else:
            self.pace = self.work.paced_s * self.slowdown
            ahead = 1 if self._save_pending is not None else self._steps_to_boundary()
        first = self.pace if left_over is None else left_over
        self.anchor_at = self._queue.now + first - self.pace
        self._arm(first + (ahead - 1) * self.pace, lambda: self._arrive(self.step + ahead))

    def _steps_to_boundary(self) -> int:
        every = self.work.every_steps
        return min(self.work.steps - self.step, every - self.step % every)

    def _reach(self, milestone: Milestone) -> None:
        if milestone == Milestone.LOADED and self.resume is not None and self.resume in self._storage.damaged:
            self._watcher.load_failed(self, self.resume)
            return
        self.reached[milestone] = self._queue.now
        if milestone == Milestone.LOADED and self.step >= self.work.steps:
            self._leave(0)
            return
        if milestone == Milestone.FIRST_STEP:
            self.step += 1
            self.progressed_at = self._queue.now
        self._watcher.run_changed(self)
        if milestone == Milestone.FIRST_STEP:
            self._arrived()
        else:
            self._go_on()

    def _arrive(self, step: int) -> None:
        self.step, self.progressed_at = step, self._queue.now
        self._arrived()

    def _arrived(self) -> None:
        """A step is complete: save, leave, finish, or go on."""
        work = self.work
        self.anchor_at = self._queue.now
        saving = self.step % work.every_steps == 0 or self._save_pending is not None
        if saving and work.save_stall_s:
            self._saving = True
            self._arm(work.save_stall_s, self._saved)
        elif saving:
            self._saved()
        else:
            self._finish_or_go_on()

    def _saved(self) -> None:
        self._saving = False
        self.stall_s += self.work.save_stall_s
        self._storage.write(Commit(self.step, self.attempt), self._delays.sample("commit"))
        leaving, self._save_pending = bool(self._save_pending), None
        if leaving:
            self._leave(76)
        else:
            self._finish_or_go_on()

    def _finish_or_go_on(self) -> None:
        if self.step >= self.work.steps:
            self._leave(0)
        else:
            self._go_on()

    def _leave(self, exit_code: int) -> None:
        self._timer = None
        self.blocked.add("left")
        self._watcher.ranks_left(self, exit_code)

    def _freeze(self) -> None:
        """Stop the timer, keeping the time that is left of the step under way."""
        if self._timer is None:
            return
        if self.is_stepping and not self._saving:
            self.step, self.progressed_at = self.position()
            into = max(0.0, self._queue.now - self.anchor_at) % self.pace
            self._left_over_s = max(0.0, self.pace - into)
        self._saving = False
        self._cancel()

    def _arm(self, delay_s: float, action: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self._queue.after(delay_s, action)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
