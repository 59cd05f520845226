"""LAMB (You et al. 2020, algorithm 2) for parameters that are spread over ranks.

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * w
    w = w - lr * (|w| / |u|) * u

The trust ratio |w| / |u| belongs to a whole parameter, while a rank holds only a flat range of it: the
distributed optimizer cuts over data-parallel ranks, tensor parallelism cuts before that. Each rank sums
the squares of its ranges and one all-reduce over both dimensions completes all norms of a step. As in the
authors' code the ratio is 1 for parameters without weight decay (norms), and where a norm is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from megascale.optim.adamw import AdamW


@dataclass(frozen=True, slots=True)
class Range:
    """Which parameter a tensor given to the optimizer is a range of.

    Attributes:
        index: position of the parameter among all of the group's ranks, the same on each of them.
        counted: whether this rank's values count; False where another rank holds the same ones.
    """

    index: int
    counted: bool


class Lamb(AdamW):
    """LAMB; without `place` it works on whole parameters of one process."""

    _ranges: Mapping[Tensor, Range] | None = None
    _parameters: int = 0
    _group: distributed.ProcessGroup | None = None
    _device = torch.device("cpu")

    def place(
        self,
        ranges: Mapping[Tensor, Range],
        parameters: int,
        group: distributed.ProcessGroup,
        device: torch.device,
    ) -> None:
        """Say what each optimized tensor is a range of.

        Args:
            ranges: one entry per optimized tensor.
            parameters: number of parameters of the group's ranks together.
            group: the ranks that together hold them.
            device: where the group's collectives work; a rank may hold no range at all.
        """
        self._ranges = ranges
        self._parameters = parameters
        self._group = group
        self._device = device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients are used up as scratch space."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.allocate_state()
        todo = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, group in todo:
            self._direction(parameter, group)
        ratios = self._trust_ratios([parameter for parameter, _ in todo])
        for (parameter, group), ratio in zip(todo, ratios, strict=True):
            if group["weight_decay"] == 0.0:
                parameter.add_(parameter.grad, alpha=-group["lr"])
            else:
                parameter.sub_(parameter.grad * (ratio * group["lr"]))
        return loss

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Replace the gradient by the update direction u."""
        beta1, beta2 = group["betas"]
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        state["step"] += 1
        updates = float(state["step"])
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (square / (1 - beta2**updates)).sqrt_().add_(group["eps"])
        torch.div(mean, scale, out=gradient)
        gradient.div_(1 - beta1**updates).add_(parameter, alpha=group["weight_decay"])

    def _trust_ratios(self, parameters: list[Tensor]) -> list[Tensor]:
        """|w| / |u| of the whole parameter behind each tensor, as fp32 scalars."""
        ranges = self._ranges or {p: Range(index, counted=True) for index, p in enumerate(parameters)}
        squares = torch.zeros(
            (self._parameters or len(parameters), 2), dtype=torch.float64, device=self._device
        )
        for parameter in parameters:
            place = ranges[parameter]
            if place.counted:
                for column, values in enumerate((parameter, parameter.grad)):
                    assert values is not None
                    norm = torch.linalg.vector_norm(values, dtype=torch.float64)
                    squares[place.index, column] += norm * norm
        if self._group is not None:
            distributed.all_reduce(squares, group=self._group)
        weight, update = squares.sqrt_().unbind(dim=1)
        ratio = torch.where((weight > 0) & (update > 0), weight / update, 1.0).float()
        return [ratio[ranges[parameter].index] for parameter in parameters]
