"""Simulated training: steps advance with the clock while all members are alive."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pace:
    """Durations of the simulated training, in seconds."""

    groups_s: float = 0.2
    load_s: float = 0.2
    step_s: float = 1.0


@dataclass
class Attempt:
    """One attempt of one job: it advances from the time all members have joined until one is lost.

    `steps`: where training ends.
    """

    number: int
    nodes: int
    pace: Pace
    steps: int
    resumed_step: int = 0
    joined: dict[str, float] = field(default_factory=dict)
    stopped_at: float = 0.0

    def join(self, node: str) -> None:
        self.joined.setdefault(node, time.time())

    def lose(self, node: str) -> None:
        """Lose a member: the collectives of the others hang from now on."""
        if node in self.joined and not self.stopped_at:
            self.stopped_at = time.time()

    @property
    def complete_at(self) -> float:
        """Time at which the last member joined, 0.0 before that."""
        return max(self.joined.values()) if len(self.joined) == self.nodes else 0.0

    def milestones(self, now: float) -> tuple[float, float, float]:
        """Return the times of groups created, state loaded and first step done; 0.0 if not yet."""
        begin = self.complete_at
        if not begin:
            return 0.0, 0.0, 0.0
        end = self.stopped_at or now
        groups = begin + self.pace.groups_s
        loaded = groups + self.pace.load_s
        first = loaded + self.pace.step_s
        reached = [one if one <= end else 0.0 for one in (groups, loaded, first)]
        return reached[0], reached[1], reached[2]

    def step(self, now: float) -> int:
        """Return the number of steps done."""
        loaded = self.milestones(now)[1]
        if not loaded:
            return self.resumed_step
        end = self.stopped_at or now
        return min(self.steps, self.resumed_step + int((end - loaded) / self.pace.step_s))

    def done(self, now: float) -> bool:
        return self.step(now) >= self.steps


class World:
    """The attempts of one job."""

    def __init__(self, pace: Pace, steps: int) -> None:
        self._pace, self._steps = pace, steps
        self._attempts: dict[int, Attempt] = {}

    def attempt(self, number: int, nodes: int, resumed_step: int) -> Attempt:
        if number not in self._attempts:
            self._attempts[number] = Attempt(number, nodes, self._pace, self._steps, resumed_step)
            for old in [one for one in self._attempts if one < number - 3]:
                del self._attempts[old]
        return self._attempts[number]

    def lose(self, node: str) -> None:
        for one in self._attempts.values():
            one.lose(node)
