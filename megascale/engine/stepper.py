"""One optimizer step: forward and backward over all micro-batches, one reduction, the update."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, distributed

from megascale.engine.feed import MicroBatch
from megascale.engine.segments import MegatronTimers, SegmentClock, TimedMessages, segment_clock
from megascale.engine.state import EngineState
from megascale.model.megatron_compat import norm_gradients


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step, the same on all ranks.

    Attributes:
        loss: mean cross entropy per counted prediction of the global batch, before the update.
        grad_norm: global L2 norm of the gradients, before clipping.
        tokens: predictions of the global batch that the loss counts.
        applied: False if the loss or the norm was not finite, in which case nothing was updated.
        votes: sums over ranks of what each passed as `votes`.
    """

    loss: float
    grad_norm: float
    tokens: int
    applied: bool
    votes: list[float]


class Stepper:
    """Runs steps of an engine state."""

    def __init__(
        self,
        state: EngineState,
        *,
        micro_batch: int,
        sequence_length: int,
        clip_grad: float,
        on_forward: Callable[[int], None],
        on_backward: Callable[[int], None],
        clock: SegmentClock[Any] | None = None,
    ) -> None:
        """`on_forward` and `on_backward` are called with the index of a micro-batch when its pass begins.

        `clock` records the segments of each step; a step ends with its update.
        """
        self._state = state
        self._micro_batch = micro_batch
        self._sequence_length = sequence_length
        self._clip_grad = clip_grad
        self._on_forward = on_forward
        self._on_backward = on_backward
        self._losses: list[Tensor] = []
        self._counted = self._forwards = 0
        layout = state.groups.layout
        self._run = get_forward_backward_func(
            layout.pipeline, layout.interleave if layout.interleave > 1 else None
        )
        self._clock = clock or segment_clock(state.device, lambda *_: None)
        self._communicator = (
            TimedMessages(state.groups.collection.pp, state.config, self._clock)
            if layout.pipeline > 1
            else None
        )
        self._time()

    def _time(self) -> None:
        """Connect megatron-core's timers to the clock, and time waits for parameters as communication."""
        state = self._state
        state.config.timers = state.optimizer.config.timers = MegatronTimers(self._clock)
        for chunk in state.chunks:
            for group in chunk.bucket_groups:
                group.finish_param_sync = self._clock.wrapped("allreduce", group.finish_param_sync)

    def forward_backward(self, batches: Sequence[MicroBatch]) -> None:
        """Compute the mean gradient of the global batch into the gradient buffers; collective."""
        for chunk in self._state.chunks:
            chunk.zero_grad_buffer()
        self._losses.clear()
        self._counted = self._forwards = 0
        chunks = len(self._state.chunks)
        iterators = [iter(batches) for _ in range(chunks)]
        self._run(
            forward_step_func=self._forward,
            data_iterator=iterators if chunks > 1 else iterators[0],
            model=self._state.chunks if chunks > 1 else self._state.chunks[0],
            num_microbatches=len(batches),
            seq_length=self._sequence_length,
            micro_batch_size=self._micro_batch,
            p2p_communicator=self._communicator,
            pg_collection=self._state.groups.collection,
        )

    def _forward(self, batches: Iterator[MicroBatch], model: Any) -> tuple[Tensor, Any]:  # noqa: ANN401
        micro_batch = self._forwards // len(self._state.chunks)
        self._forwards += 1
        batch = MicroBatch(*next(batches))
        self._on_forward(micro_batch)
        output = model(batch.tokens, None, batch.borders, labels=batch.labels)
        output.register_hook(lambda _grad: self._on_backward(micro_batch))
        return output, functools.partial(self._loss, batch)

    def _loss(self, batch: MicroBatch, token_losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over one micro-batch; megatron-core divides by the number of micro-batches.

        Predictions that do not count are zeros in the mean, so that all others weigh the same; `_update`
        makes the gradient that of their mean.
        """
        if batch.counted is not None:
            token_losses = torch.where(batch.counted, token_losses, 0.0)
        self._losses.append(token_losses.detach().sum(dtype=torch.float64))
        self._counted += batch.predictions
        return token_losses.mean(), {}

    @torch.no_grad()
    def update(self, lr: float, votes: list[float]) -> StepResult:
        """All-reduce loss and gradient norm, clip, and update the parameters; collective.

        If the loss or the norm is not finite, no rank updates anything.
        """
        with self._clock.within("optimizer"):
            result = self._update(lr, votes)
        self._clock.finish(self._state.step + 1)
        return result

    def _update(self, lr: float, votes: list[float]) -> StepResult:
        state = self._state
        optimizer = state.optimizer
        optimizer.prepare_grads()
        square = self._local_square_norm()
        # All tensor-parallel ranks of the last stage have the same loss; one of them contributes it.
        has_loss = state.groups.coordinates.tensor == 0 and bool(self._losses)
        tokens = len(self._losses) * self._micro_batch * self._sequence_length if has_loss else 0
        counted = self._counted if has_loss else 0
        # Filled on the device: copying single values from the host would synchronise once for each.
        agreed = torch.zeros(4 + len(votes), dtype=torch.float64, device=state.device)
        if has_loss:
            agreed[0] = torch.stack(self._losses).sum()
        agreed[1] = square
        for at, value in enumerate((tokens, counted, *votes), start=2):
            agreed[at].fill_(value)
        with self._clock.within("allreduce"):
            distributed.all_reduce(agreed, group=state.groups.world)
        total, squares, tokens_all, counted_all, *votes_all = agreed.tolist()
        # The gradients are of the sum of losses over all tokens; 1.0 exactly if every prediction counts.
        scale = tokens_all / counted_all if counted_all else 1.0
        loss = total / counted_all if counted_all else 0.0
        grad_norm = scale * math.sqrt(squares) if squares >= 0 else math.nan
        applied = math.isfinite(loss) and math.isfinite(grad_norm)
        if applied:
            if 0.0 < self._clip_grad < grad_norm:
                scale *= self._clip_grad / grad_norm
            if scale != 1.0:
                state.inner.scale_gradients(scale)
            for group in state.inner.param_groups:
                group["lr"] = lr
            optimizer.step_with_ready_grads()
        return StepResult(loss, grad_norm, int(counted_all), applied, votes_all)

    def _local_square_norm(self) -> Tensor:
        """Sum of squares of this rank's gradients in fp64; each parameter counts on one rank only."""
        gradients = norm_gradients(self._state.optimizer)
        if not gradients:
            return torch.zeros((), dtype=torch.float64, device=self._state.device)
        norms = torch._foreach_norm(gradients, 2, dtype=torch.float64)  # noqa: SLF001 - no other name
        return torch.stack(norms).square_().sum()
