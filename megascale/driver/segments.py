"""Joins the segment times of all ranks into one event per step, in step order."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Final

from megascale.core.contract import events as ev
from megascale.rpc import megascale_pb2 as pb

_STEPS: Final = 64
_DIGITS: Final = 6


@dataclass(slots=True)
class _Step:
    seconds: array[float]
    missing: int


class SegmentBoard:
    """Buffers segment times of up to 64 steps.

    A step is emitted when the times of all ranks have arrived, when a later step is complete, or when it is
    more than 64 steps older than the newest.
    """

    def __init__(self) -> None:
        self._attempt, self._ranks = 0, 0
        self._steps: dict[int, _Step] = {}
        self._done = 0

    def take(self, message: pb.SegmentTimes, attempt: int, ranks: int) -> list[ev.SegmentTimes]:
        """Add a node's batch and return the events of steps that are ready, in step order.

        Args:
            attempt: the current attempt; batches of other attempts are ignored.
            ranks: number of ranks of the attempt.
        """
        if message.attempt != attempt or not ranks:
            return []
        if (attempt, ranks) != (self._attempt, self._ranks):
            self._attempt, self._ranks = attempt, ranks
            self._steps, self._done = {}, 0
        for rank in message.ranks:
            if rank.rank < ranks:
                for offset, seconds in enumerate(rank.compute_s[:_STEPS]):
                    self._note(rank.first_step + offset, rank.rank, seconds)
        return self._ready()

    def _note(self, number: int, rank: int, seconds: float) -> None:
        if number <= self._done:
            return
        step = self._steps.get(number)
        if step is None:
            step = self._steps[number] = _Step(array("f", bytes(4 * self._ranks)), self._ranks)
        if step.seconds[rank] <= 0.0 < seconds:
            step.missing -= 1
            step.seconds[rank] = seconds

    def _ready(self) -> list[ev.SegmentTimes]:
        """Return the steps up to the newest complete one, and those more than 64 older than the newest."""
        whole = [number for number, step in self._steps.items() if step.missing == 0]
        newest = max(self._steps, default=0)
        upto = max(max(whole, default=0), newest - _STEPS)
        numbers = sorted(number for number in self._steps if number <= upto)
        self._done = max(self._done, upto)
        return [self._event(number, self._steps.pop(number)) for number in numbers]

    def _event(self, number: int, step: _Step) -> ev.SegmentTimes:
        return ev.SegmentTimes(
            self._attempt, number, tuple(round(seconds, _DIGITS) for seconds in step.seconds)
        )
