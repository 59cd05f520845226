"""When a lack of progress becomes suspicious: bounds learnt from the job's own steps.

A stall is suspected after `hang_steps` x the step time + margin (design 4). Phases that are long by
nature have bounds of their own, learnt from how long they took before: a long evaluation is no hang.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_STEPS_KEPT = 64
_PHASE_FACTOR = 3.0
_PHASE_FLOOR_S = {
    "startup": 600.0,
    "compile": 1800.0,
    "checkpoint": 300.0,
    "evaluation": 1800.0,
    "data": 120.0,
    "idle": 600.0,
}


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

    def observe_phase(self, phase: str, seconds: float) -> None:
        """Learn how long a phase took without a step being completed."""
        if phase in _PHASE_FLOOR_S:
            self.longest_s[phase] = max(self.longest_s.get(phase, 0.0), seconds)

    def step_s(self) -> float | None:
        """Step time to expect: the 90th percentile of recent steps; None before the first."""
        if not self.durations_s:
            return None
        ordered = sorted(self.durations_s)
        return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]

    def bound_s(self, phase: str, *, steps: float, margin_s: float) -> float | None:
        """Seconds without progress after which `phase` is suspected; None while nothing is learnt."""
        expected = self.step_s()
        if expected is None:
            return None
        bound = steps * expected + margin_s
        if phase in _PHASE_FLOOR_S:
            learnt = (
                _PHASE_FACTOR * self.longest_s[phase] + margin_s
                if phase in self.longest_s
                else _PHASE_FLOOR_S[phase]
            )
            return max(bound, learnt)
        return bound
