"""LAMB (You et al. 2020, algorithm 2) for parameters that are split over ranks.

    m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2
    u = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay * w
    w = w - lr * (|w| / |u|) * u

The trust ratio |w| / |u| is that of a whole parameter, while a rank holds only a flat range of it: tensor
parallelism splits parameters, and the distributed optimizer splits the parts over data-parallel ranks. Each
rank sums the squares of its ranges, and one all-reduce over both dimensions completes all norms of a step.
The ratio does not depend on the weight decay. It is 1 if a norm is 0, and, as in the authors' code, for layer
norms and biases, which are in groups with `trust_ratio: False`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed

from megascale.optim.adamw import AdamW, ParameterBatch, blocks, evaluated, fuses, with_gradients
from megascale.optim.factors import Factors


@dataclass(frozen=True, slots=True)
class Range:
    """The parameter that an optimized tensor is a range of.

    Attributes:
        index: index of the parameter, the same on all ranks of the group.
        counted: whether this rank's values count; False if another rank counts the same values.
    """

    index: int
    counted: bool


def turn_into_direction(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: Tensor, factors: Factors
) -> None:
    """On a CPU: update the moments and overwrite the gradient with the direction u; tensors have one shape.

    torch's fused Adam, with rate 1 and parameters that are zero, leaves minus the direction in these.
    """
    moved = torch.zeros_like(weight)
    torch._fused_adamw_(
        [moved],
        [gradient],
        [mean],
        [square],
        [],
        [step],
        lr=1.0,
        beta1=factors.beta1,
        beta2=factors.beta2,
        weight_decay=0.0,
        eps=factors.eps,
        amsgrad=False,
        maximize=False,
    )
    torch.mul(weight, factors.weight_decay, out=gradient)
    gradient.sub_(moved)


class Lamb(AdamW):
    """LAMB; without `set_ranges` it works on whole parameters of one process."""

    torch_fuses: ClassVar[bool] = False
    _ranges: Mapping[Tensor, Range] | None = None
    _parameters: int = 0
    _group: distributed.ProcessGroup | None = None
    _device = torch.device("cpu")

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps)
        self._indices: dict[tuple[int, ...], Tensor] = {}

    def set_ranges(
        self,
        ranges: Mapping[Tensor, Range],
        parameters: int,
        group: distributed.ProcessGroup,
        device: torch.device,
    ) -> None:
        """Define the parameter that each optimized tensor is a range of.

        Args:
            ranges: one entry per optimized tensor.
            parameters: number of parameters on all ranks of the group together.
            group: the ranks that together hold the parameters.
            device: device of the group's collectives, given because a rank may hold no range.
        """
        self._ranges = ranges
        self._parameters = parameters
        self._group = group
        self._device = device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients are overwritten."""
        loss = evaluated(closure)
        self.allocate_state()
        batch, scale = with_gradients(self), self.take_scale()
        fused = fuses(batch)
        direct = self._directions_fused if fused else self._directions_in_blocks
        apply = self._apply_fused if fused else self._apply_one_by_one
        squares = [direct(index, group, scale) for index, group in enumerate(batch)]
        ratios = self._trust_ratios([parameter for group in batch for parameter in group.parameters], squares)
        begin = 0
        for index, group in enumerate(batch):
            end = begin + len(group.parameters)
            own = ratios[begin:end]
            if not group.settings.get("trust_ratio", True):
                own = torch.ones_like(own)
            apply(index, group, own * group.settings["lr"])
            begin = end
        return loss

    def _advance(self, batch: ParameterBatch) -> tuple[list[Tensor], list[Tensor], Factors]:
        """Count the update; returns the moments and the factors of this one."""
        states = [self.state[parameter] for parameter in batch.parameters]
        torch._foreach_add_([state["step"] for state in states], 1)
        means, squares = ([state[name] for state in states] for name in self.moments)
        return means, squares, Factors.of(batch.settings, float(states[0]["step"]))

    def _directions_in_blocks(self, index: int, batch: ParameterBatch, scale: float) -> Tensor:  # noqa: ARG002 - as its fused twin
        """Update the moments and replace gradients by the update directions u.

        Returns:
            Sums of squares of each tensor's values and directions, fp64 (tensors, 2).
        """
        means, squares, factors = self._advance(batch)
        step = self.state[batch.parameters[0]]["step"]
        for w, g, m, v in blocks(batch.parameters, batch.gradients, means, squares):
            if scale != 1.0:
                g.mul_(scale)
            turn_into_direction(w, g, m, v, step, factors)
        norms = [
            torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64))  # noqa: SLF001 - no other name
            for tensors in (batch.parameters, batch.gradients)
        ]
        return torch.stack(norms, dim=1).square_()

    def _directions_fused(self, index: int, batch: ParameterBatch, scale: float) -> Tensor:
        """Do the same in one kernel."""
        means, squares, factors = self._advance(batch)
        table = self.tables.of(index, batch.parameters, batch.gradients, means, squares)
        return table.lamb_directions(factors, scale)

    def _apply_one_by_one(self, index: int, batch: ParameterBatch, rates: Tensor) -> None:  # noqa: ARG002 - as its fused twin
        """w -= rate * u with one rate per tensor."""
        for weight, direction, rate in zip(batch.parameters, batch.gradients, rates.tolist(), strict=True):
            weight.sub_(direction, alpha=rate)

    def _apply_fused(self, index: int, batch: ParameterBatch, rates: Tensor) -> None:
        """Do the same in one kernel, with the table that the directions were computed with."""
        means, squares = ([self.state[p][name] for p in batch.parameters] for name in self.moments)
        self.tables.of(index, batch.parameters, batch.gradients, means, squares).lamb_apply(rates)

    def _trust_ratios(self, parameters: list[Tensor], local: list[Tensor]) -> Tensor:
        """|w| / |u| of the whole parameter of each tensor, fp32 (parameters,), from local sums of squares."""
        ranges = self._ranges or {p: Range(index, counted=True) for index, p in enumerate(parameters)}
        squares = torch.zeros(
            (self._parameters or len(parameters), 2), dtype=torch.float64, device=self._device
        )
        counted = tuple(at for at, parameter in enumerate(parameters) if ranges[parameter].counted)
        if counted:
            index = self._on_device(tuple(ranges[parameters[at]].index for at in counted))
            squares.index_add_(0, index, torch.cat(local)[self._on_device(counted)])
        if self._group is not None:
            distributed.all_reduce(squares, group=self._group)
        weight, update = squares.sqrt_().unbind(dim=1)
        ratio = torch.where((weight > 0) & (update > 0), weight / update, 1.0).float()
        return ratio[self._on_device(tuple(ranges[parameter].index for parameter in parameters))]

    def _on_device(self, indices: tuple[int, ...]) -> Tensor:
        """Indices as an int64 tensor on the device, cached because the copy makes the host wait."""
        if indices not in self._indices:
            self._indices[indices] = torch.tensor(indices, dtype=torch.int64, device=self._device)
        return self._indices[indices]
