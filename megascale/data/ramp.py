"""Sizes of global batches that grow during the first steps of a job.

The size of a step and the number of samples before it are pure functions of the step, so a resumed run needs
no state and uses every sample once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Samples per step over all ranks.

    Attributes:
        full: the size after the ramp.
        start: the size of step 1; increment: added after every `every_steps` steps until `full` is reached.
            increment 0 = no ramp.
    """

    full: int
    start: int
    increment: int
    every_steps: int

    @classmethod
    def constant(cls, size: int) -> BatchSizes:
        """Every step has `size` samples."""
        return cls(full=size, start=size, increment=0, every_steps=1)

    @property
    def _ramp_steps(self) -> int:
        return (self.full - self.start) // self.increment * self.every_steps if self.increment else 0

    def at(self, step: int) -> int:
        """Samples of `step`, 1-based."""
        if step > self._ramp_steps:
            return self.full
        return self.start + (step - 1) // self.every_steps * self.increment

    def before(self, step: int) -> int:
        """Samples of all steps before `step`, which is the index of its first sample."""
        ramped = min(step - 1, self._ramp_steps)
        levels, rest = divmod(ramped, self.every_steps)
        whole = levels * self.start + levels * (levels - 1) // 2 * self.increment
        ramp = whole * self.every_steps + rest * (self.start + levels * self.increment)
        return ramp + (step - 1 - ramped) * self.full

    def step_of(self, sample: int) -> int:
        """The step that uses `sample`."""
        low, high = 1, sample // self.start + 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.before(middle) <= sample:
                low = middle
            else:
                high = middle - 1
        return low
