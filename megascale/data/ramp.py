"""Sizes of global batches that grow during the first steps of a job.

The size of a step is a function of the step. The number of samples before it is too, unless sizes were
changed at a resume: `shift` then makes the samples go on where the checkpoint says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from megascale.job.data import Data


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Samples per step over all ranks.

    Attributes:
        full: the size after the ramp.
        start: the size of step 1; increment: added after every `every_steps` steps until `full` is reached.
            increment 0 = no ramp.
        shift: samples that the job has used beyond those of these sizes; 0 unless sizes were changed.
    """

    full: int
    start: int
    increment: int
    every_steps: int
    shift: int = 0

    @classmethod
    def constant(cls, size: int) -> BatchSizes:
        """Every step has `size` samples."""
        return cls(full=size, start=size, increment=0, every_steps=1)

    @classmethod
    def of(cls, data: Data) -> BatchSizes:
        """The sizes that a manifest's data section asks for."""
        ramp = data.batch_ramp
        if ramp is None:
            return cls.constant(data.global_batch)
        return cls(data.global_batch, ramp.start, ramp.increment, ramp.every_steps)

    def going_on(self, step: int, next_sample: int) -> Self:
        """These sizes for a job whose first `step` steps used the samples before `next_sample`."""
        return replace(self, shift=self.shift + next_sample - self.before(step + 1))

    @property
    def _ramp_steps(self) -> int:
        return (self.full - self.start) // self.increment * self.every_steps if self.increment else 0

    def at(self, step: int) -> int:
        """Samples of `step`, 1-based."""
        if step > self._ramp_steps:
            return self.full
        return self.start + (step - 1) // self.every_steps * self.increment

    def before(self, step: int) -> int:
        """Samples of all steps before `step`, which is the index of its first sample.

        With a shift this holds from the step of the resume on.
        """
        ramped = min(step - 1, self._ramp_steps)
        levels, rest = divmod(ramped, self.every_steps)
        whole = levels * self.start + levels * (levels - 1) // 2 * self.increment
        ramp = whole * self.every_steps + rest * (self.start + levels * self.increment)
        return ramp + (step - 1 - ramped) * self.full + self.shift

    def step_of(self, sample: int) -> int:
        """The step that uses `sample`."""
        low, high = 1, max(0, sample - self.shift) // self.start + 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.before(middle) <= sample:
                low = middle
            else:
                high = middle - 1
        return low
