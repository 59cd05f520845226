"""Measures the segments of each step on this rank without synchronising host and device (MegaScale 5.1).

A mark is recorded at every change of segment: the host's clock on a CPU, a CUDA event on a GPU. Segments do
not overlap: one that begins inside another interrupts it. CUDA events are read when they are complete, one or
two steps later. megatron-core calls its `timers` around each forward and backward pass, send, receive and
reduction; `MegatronTimers` turns these calls into marks, and waits that it does not time are wrapped.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Generic, Protocol, TypeVar

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

MarkT = TypeVar("MarkT")
OnStep = Callable[[int, Mapping[str, float]], None]
_NOTHING: Final = ""
_PENDING_STEPS: Final = 8
"""Steps whose events may be incomplete; the host is never more than one step ahead of the device."""


class Marks(Protocol[MarkT]):
    """Records marks and measures the time between them."""

    def now(self) -> MarkT:
        """Record a mark after the work submitted so far."""

    def is_past(self, mark: MarkT) -> bool:
        """Whether the device has reached `mark`."""

    def seconds(self, begin: MarkT, end: MarkT) -> float:
        """Time between two marks that the device has reached."""

    def reuse(self, marks: list[MarkT]) -> None:
        """Take back marks that are no longer needed."""


class HostMarks:
    """Marks on a CPU, whose work is complete when a call returns."""

    def now(self) -> float:
        return time.perf_counter()

    def is_past(self, _mark: float) -> bool:
        return True

    def seconds(self, begin: float, end: float) -> float:
        return end - begin

    def reuse(self, marks: list[float]) -> None: ...


class CudaMarks:
    """Marks on a GPU: CUDA events on the current stream, which are reused."""

    def __init__(self) -> None:
        self._free: list[torch.cuda.Event] = []

    def now(self) -> torch.cuda.Event:
        event = self._free.pop() if self._free else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def is_past(self, mark: torch.cuda.Event) -> bool:
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(begin.elapsed_time(end)) / 1e3

    def reuse(self, marks: list[torch.cuda.Event]) -> None:
        self._free += marks


class SegmentClock(Generic[MarkT]):
    """Divides each step into segments and reports their seconds."""

    def __init__(self, marks: Marks[MarkT], on_step: OnStep) -> None:
        """`on_step` is called with each step's number and its seconds by segment, in the order of steps."""
        self._make = marks
        self._on_step = on_step
        self._open: list[str] = []
        self._marks: list[tuple[str, MarkT]] = []
        self._done: deque[tuple[int, list[tuple[str, MarkT]]]] = deque()

    def enter(self, segment: str) -> None:
        """Begin `segment`; the matching `leave` ends it."""
        self._open.append(segment)
        self._marks.append((segment, self._make.now()))

    def leave(self) -> None:
        """End the current segment and continue the one that it interrupted."""
        self._open.pop()
        self._marks.append((self._open[-1] if self._open else _NOTHING, self._make.now()))

    @contextmanager
    def within(self, segment: str) -> Iterator[None]:
        """Count the block as `segment`."""
        self.enter(segment)
        yield
        self.leave()

    def wrapped(self, segment: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, with its duration counted as `segment`."""

        def timed(*args: Any, **options: Any) -> Any:  # noqa: ANN401 - those of `call`
            with self.within(segment):
                return call(*args, **options)

        return timed

    def finish(self, step: int) -> None:
        """End `step`, and report all steps whose marks the device has reached."""
        self._done.append((step, self._marks))
        self._marks = []
        while self._done and self._make.is_past(self._done[0][1][-1][1]):
            self._hand_out(*self._done.popleft())
        if len(self._done) > _PENDING_STEPS:
            self._make.reuse([mark for _, mark in self._done.popleft()[1]])

    def _hand_out(self, step: int, marks: list[tuple[str, MarkT]]) -> None:
        seconds: dict[str, float] = {}
        for (segment, begin), (_, end) in itertools.pairwise(marks):
            if segment:
                seconds[segment] = seconds.get(segment, 0.0) + self._make.seconds(begin, end)
        self._make.reuse([mark for _, mark in marks])
        self._on_step(step, seconds)


def segment_clock(device: torch.device, on_step: OnStep) -> SegmentClock[Any]:
    """A clock for a rank that computes on `device`."""
    if device.type == "cuda":
        return SegmentClock(CudaMarks(), on_step)
    return SegmentClock(HostMarks(), on_step)


def segment_of(timer: str) -> str | None:
    """The segment of one of megatron-core's timers; None if the timer spans several.

    A send that is combined with a receive ends when the receive does: it counts as "recv".
    """
    if timer in ("forward-compute", "backward-compute"):
        return timer.removesuffix("-compute")
    if timer.startswith("optimizer-"):
        return "optimizer"
    if timer.endswith(("-grads-sync", "-all-reduce", "-all-gather")):
        return "allreduce"
    for direction in ("recv", "send"):
        if direction in timer:
            return direction
    return None


class MegatronTimers:
    """Implements megatron-core's `config.timers`: timers(name, log_level=...).start(), .stop()."""

    def __init__(self, clock: SegmentClock[Any]) -> None:
        self._clock = clock
        self._timers: dict[str, _Timer | _NoTimer] = {}

    def __call__(self, name: str, log_level: int = 0) -> _Timer | _NoTimer:  # noqa: ARG002 - their signature
        timer = self._timers.get(name)
        if timer is None:
            segment = segment_of(name)
            timer = self._timers[name] = _Timer(self._clock, segment) if segment else _NoTimer()
        return timer


class _Timer:
    def __init__(self, clock: SegmentClock[Any], segment: str) -> None:
        self._clock, self._segment = clock, segment

    def start(self, barrier: bool = False) -> None:  # noqa: ARG002 - never a barrier here
        self._clock.enter(self._segment)

    def stop(self) -> None:
        self._clock.leave()


class _NoTimer:
    def start(self, barrier: bool = False) -> None: ...

    def stop(self) -> None: ...


class TimedMessages(P2PCommunicator):  # type: ignore[misc] # megatron-core is untyped
    """Messages between pipeline stages; of those that overlap compute only the final wait is timed."""

    def __init__(self, group: Any, config: Any, clock: SegmentClock[Any]) -> None:  # noqa: ANN401 - megatron-core's
        super().__init__(group, config)
        self._clock = clock

    def _communicate(self, **message: Any) -> tuple[Any, Any, Any]:  # noqa: ANN401 - as above
        from_before, from_after, requests = super()._communicate(**message)
        if isinstance(requests, dict):
            requests = {name: _TimedWait(work, self._clock, name[:4]) for name, work in requests.items()}
        return from_before, from_after, requests


class _TimedWait:
    """A request whose wait counts as "recv" or "send"."""

    def __init__(self, work: Any, clock: SegmentClock[Any], segment: str) -> None:  # noqa: ANN401 - torch's Work
        self._work = work
        self.wait = clock.wrapped(segment, work.wait)
