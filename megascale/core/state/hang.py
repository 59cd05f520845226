"""How long a job may go without a step before it is suspected to hang, learnt from its own steps.

A stall is suspected after `hang_steps` x the step time + margin. Long phases, such as an evaluation, have
bounds of their own, learnt from how long they took before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from megascale.core.contract.vocabulary import RankPhase, Tier

_STEPS_KEPT: Final = 64
_PHASE_FACTOR: Final = 3.0
_LAUNCH_FACTOR: Final = 5.0
_LAUNCH_FLOOR_S: Final = 60.0
_PHASE_FLOOR_S: Final = {
    RankPhase.STARTUP: 600.0,
    RankPhase.COMPILE: 1800.0,
    RankPhase.CHECKPOINT: 300.0,
    RankPhase.EVALUATION: 1800.0,
    RankPhase.DATA: 120.0,
    RankPhase.IDLE: 600.0,
    RankPhase.SAVING_AGAIN: 0.0,
}
_NOT_LEARNT: Final = RankPhase.SAVING_AGAIN
"""Ranks bound this phase themselves, by `checkpoint.saveSeconds`."""


@dataclass(slots=True)
class StepClock:
    """Recent step durations and the longest time spent in each long phase, in seconds."""

    durations_s: list[float] = field(default_factory=list)
    longest_s: dict[str, float] = field(default_factory=dict)

    def observe_step(self, seconds: float) -> None:
        """Learn from one completed step."""
        if seconds > 0:
            self.durations_s.append(seconds)
            del self.durations_s[:-_STEPS_KEPT]

    def observe_phase(self, phase: RankPhase, seconds: float) -> None:
        """Learn how long a phase took without a step being completed."""
        if phase in _PHASE_FLOOR_S and phase is not _NOT_LEARNT:
            self._learn(phase, seconds)

    def observe_launch(self, tier: Tier, seconds: float) -> None:
        """Learn how long a launch that restored from this tier took to its first step."""
        self._learn(f"launch from {tier}", seconds)

    def _learn(self, name: str, seconds: float) -> None:
        self.longest_s[name] = max(self.longest_s.get(name, 0.0), seconds)

    def step_s(self) -> float | None:
        """Step time to expect: the 90th percentile of recent steps; None before the first."""
        if not self.durations_s:
            return None
        ordered = sorted(self.durations_s)
        return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]

    def bound_s(self, phases: Iterable[RankPhase], *, steps: float, margin_s: float) -> float | None:
        """Seconds without progress after which a job with ranks in `phases` is suspected.

        Ranks wait for the one in the longest phase, so that one's bound counts. None while nothing is learnt.
        """
        expected = self.step_s()
        if expected is None:
            return None
        return max([steps * expected + margin_s, *(self._phase_bound_s(p, margin_s) for p in phases)])

    def _phase_bound_s(self, phase: RankPhase, margin_s: float) -> float:
        if phase in self.longest_s:
            return _PHASE_FACTOR * self.longest_s[phase] + margin_s
        return _PHASE_FLOOR_S.get(phase, 0.0)

    def launch_bound_s(self, tier: Tier, limit_s: float) -> float:
        """Seconds a launch that restores from this tier may take to its first step, at most `limit_s`."""
        longest = self.longest_s.get(f"launch from {tier}")
        return limit_s if longest is None else min(limit_s, max(_LAUNCH_FLOOR_S, _LAUNCH_FACTOR * longest))

    def forget_launches(self) -> None:
        """Forget the learnt bounds of launches: one was given up, and they may have been too short."""
        for name in [name for name in self.longest_s if name.startswith("launch from ")]:
            del self.longest_s[name]


@dataclass(slots=True)
class PhaseBoard:
    """Which long phases ranks are in, by whoever reported them (a node, or None for all at once)."""

    by_node: dict[str | None, RankPhase] = field(default_factory=dict)
    counts: Counter[RankPhase] = field(default_factory=Counter)

    def note(self, node: str | None, phase: RankPhase) -> RankPhase | None:
        """Remember the phase of `node`; returns the long phase it left, None if it left none."""
        before = self.by_node.get(node)
        if phase == before:
            return None
        if before is not None:
            self.counts[before] -= 1
            del self.by_node[node]
        if phase in _PHASE_FLOOR_S:
            self.by_node[node] = phase
            self.counts[phase] += 1
        return before

    def current(self) -> list[RankPhase]:
        """Long phases that some rank is in, by name."""
        return sorted(phase for phase, count in self.counts.items() if count > 0)
