"""The step loop of one rank."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

from megascale.engine.context import RankLaunch
from megascale.engine.feed import Feed
from megascale.engine.garbage import PlannedCollection
from megascale.engine.metrics import MetricsLog
from megascale.engine.plan import Plan
from megascale.engine.points import AtPoint
from megascale.engine.segments import SegmentClock
from megascale.engine.state import EngineState
from megascale.engine.stepper import Stepper, StepResult
from megascale.model.flops import training_flops
from megascale.observe.alerts import alert
from megascale.observe.rankfile import Control, Phase, RankFile
from megascale.optim.schedules import scheduled_rate

EXIT_COMPLETED: Final = 0
EXIT_SAVED: Final = 76
"""The rank saved a checkpoint and stopped on request."""
EXIT_UNSAVED: Final = 77
"""The rank stopped, at the last step or on request, and the state after its last step could not be saved."""


class Saver(Protocol):
    """Saves durable checkpoints."""

    def save(self, step: int) -> bool:
        """Save the state of all ranks after `step`; collective. A failure only raises an alert.

        Returns:
            Whether it is saved; the same on all ranks.
        """

    def save_again(self, step: int) -> bool:
        """Try again, for a bounded time, what `save` failed to do; otherwise as `save`."""


class Snapshotter(Protocol):
    """Keeps copies of this rank's state in memory."""

    def take(self, step: int, step_s: float) -> float:
        """Copy the state after `step` if a copy is due; every rank calls it after every step.

        Returns:
            Seconds this rank was blocked.
        """


@dataclass(slots=True)
class _Clock:
    """Monotonic times within one step."""

    start: float
    data: float = 0.0
    end: float = 0.0


class Loop:
    """Runs steps until the job is complete or a stop is requested.

    All ranks must save, and leave the loop, after the same step, but agents pass a request to their ranks at
    different times. So each rank adds its request as a vote to the all-reduce at the end of a step.
    """

    def __init__(
        self,
        *,
        launch: RankLaunch,
        plan: Plan,
        state: EngineState,
        feed: Feed,
        rank_file: RankFile,
        metrics: MetricsLog,
        at_point: AtPoint,
        saver: Saver,
        peak_flops: float,
        clock: SegmentClock[Any],
        snapshots: Snapshotter | None = None,
    ) -> None:
        """`peak_flops` is the matmul peak of this rank's device in FLOP/s, 0.0 = unknown."""
        self._launch = launch
        self._plan = plan
        self._state = state
        self._feed = feed
        self._rank_file = rank_file
        self._metrics = metrics
        self._at_point = at_point
        self._saver = saver
        self._snapshots = snapshots
        self._peak_flops = peak_flops
        self._segments = clock
        self._requests = 0
        self._compiles = plan.megatron.compile
        self._stall = 0.0
        self._snapshot_stall = 0.0
        self._collectives = 0
        self._first_step_at = 0.0
        data = plan.megatron.data
        self._stepper = Stepper(
            state,
            micro_batch=data.micro_batch,
            sequence_length=data.sequence_length,
            clip_grad=plan.megatron.optimizer.clip_grad,
            on_forward=lambda index: self._compute(Phase.FORWARD, "forward", index),
            on_backward=lambda index: self._compute(Phase.BACKWARD, "backward", index),
            clock=clock,
        )
        self._flops_per_sample = training_flops(plan.shape, 1, data.sequence_length) / launch.world_size

    def _report(self, **changes: Any) -> None:  # noqa: ANN401 - fields of the rank record
        self._rank_file.update(updated_at=time.monotonic(), **changes)

    def _enter(self, phase: Phase, collective: str, **changes: Any) -> None:  # noqa: ANN401 - as above
        """Publish in the rank record that this rank enters its next collective section.

        A section is a forward or backward pass of one chunk and micro-batch, an update, or a save. All ranks
        enter the same number of them, so the rank with the smallest count is the one the others wait for.
        """
        self._collectives += 1
        self._report(phase=phase, collectives=self._collectives, collective=collective, **changes)

    def _compute(self, phase: Phase, name: str, index: int) -> None:
        """Enter a pass over micro-batch `index`; the phase is COMPILE in a first step that compiles."""
        shown = Phase.COMPILE if self._compiles else phase
        self._enter(shown, f"{name} {index}", micro_batch=index)

    def run(self) -> int:
        """Train from the step after `state.step`; returns the exit code."""
        code = self._run_steps()
        self._state.finish_gathering()
        return code

    def _run_steps(self) -> int:
        with PlannedCollection(self._state.step) as garbage:
            while self._state.step < self._plan.spec.steps:
                result = self._step(self._state.step + 1)
                wants_save, wants_exit = (vote > 0 for vote in result.votes)
                saves = wants_save or wants_exit or self._is_save_due()
                is_done = self._state.step == self._plan.spec.steps
                saved = self._save(is_last=is_done or wants_exit) if saves else True
                if not saved and (is_done or wants_exit):
                    return EXIT_UNSAVED
                if wants_exit and not is_done:
                    return EXIT_SAVED
                garbage.after(self._state.step, saved=saves)
        return EXIT_COMPLETED

    def _is_save_due(self) -> bool:
        step = self._state.step
        every = self._launch.save_every_steps or self._plan.spec.checkpoint.every_steps
        return step % every == 0 or step == self._plan.spec.steps

    def _step(self, step: int) -> StepResult:
        self._at_point("step", step)
        clock = _Clock(time.monotonic())
        self._report(phase=Phase.DATA, micro_batch=0)
        with self._segments.within("data"):
            batches = self._feed.load(step)
        clock.data = time.monotonic() - clock.start
        self._stepper.forward_backward(batches)
        self._enter(Phase.OPTIMIZER, f"update {step}")
        lr = scheduled_rate(step, self._plan.megatron.optimizer, self._plan.spec.steps)
        result = self._stepper.update(lr, self._votes())
        self._state.prefetch_parameters()
        clock.end = time.monotonic()
        self._compiles = False
        self._state.step = step
        self._publish(result, lr, clock)
        self._snapshot(clock)
        return result

    def _votes(self) -> list[float]:
        """[save, save and exit]: 1.0 in the first step after the agent has made that request."""
        requests = self._rank_file.requests
        control = self._rank_file.control if requests != self._requests else Control.NONE
        self._requests = requests
        return [float(control == asked) for asked in (Control.SAVE, Control.SAVE_AND_EXIT)]

    def _publish(self, result: StepResult, lr: float, clock: _Clock) -> None:
        step = self._state.step
        seconds = clock.end - clock.start
        flops = self._flops_per_sample * self._plan.batches.at(step) / seconds
        tokens = self._plan.tokens_until(step)
        self._first_step_at = self._first_step_at or clock.end
        self._report(
            step=step,
            loss=result.loss,
            grad_norm=result.grad_norm,
            tokens=tokens,
            progress_at=clock.end,
            first_step_at=self._first_step_at,
            step_seconds=seconds,
            flops=flops,
        )
        if self._launch.rank != 0:
            return
        if not result.applied:
            alert(
                "nonFiniteLoss",
                f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}; the update was left out",
            )
        self._metrics.append(
            self._stamp()
            | {
                "step": step,
                "loss": result.loss,
                "gradNorm": result.grad_norm,
                "lr": lr,
                "tokens": tokens,
                "stepSeconds": seconds,
                "dataSeconds": clock.data,
                "stallSeconds": self._stall,
                "flops": flops,
                "peakFlops": self._peak_flops,
                "time": time.time(),
            }
        )

    def _stamp(self) -> dict[str, Any]:
        launch = self._launch
        return {
            "job": launch.job,
            "attempt": launch.attempt,
            "term": launch.term,
            "rank": launch.rank,
            "node": launch.node,
        }

    def _snapshot(self, clock: _Clock) -> None:
        blocked = self._snapshots.take(self._state.step, clock.end - clock.start) if self._snapshots else 0.0
        if blocked:
            self._stall += blocked
            self._snapshot_stall += blocked
            self._report(
                stall_seconds=self._stall,
                snapshot_seconds=self._snapshot_stall,
                snapshot_step=self._state.step,
                snapshot_attempt=self._launch.attempt,
            )

    def _save(self, *, is_last: bool) -> bool:
        """Save; the last state of this launch, which no later save covers, is tried again."""
        step, began = self._state.step, time.monotonic()
        self._enter(Phase.CHECKPOINT, f"save {step}")
        saved = self._saver.save(step)
        if is_last and not saved:
            self._report(phase=Phase.SAVING_AGAIN)
            saved = self._saver.save_again(step)
        self._stall += time.monotonic() - began
        self._report(phase=Phase.IDLE, stall_seconds=self._stall)
        return saved
