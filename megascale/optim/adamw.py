"""AdamW as the base of every optimizer here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megascale.optim.fused import Tables

CACHED: Final = 16_384
"""Values per piece: four fp32 tensors and a temporary take 320 KB, within most second-level caches."""


class AdamW(torch.optim.AdamW):
    """torch's AdamW with state that exists before the first step, so a checkpoint can be copied into it.

    megatron-core's `DistributedOptimizer` accepts only Adam and AdamW: others subclass this. torch's fused
    kernel updates the parameters, on CPUs too: 28 bytes of traffic each.

    Attributes:
        moments: names of the state tensors that have the shape of their parameter.
        torch_fuses: whether torch's fused kernel is what `step` runs.
    """

    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    torch_fuses: ClassVar[bool] = True

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=self.torch_fuses)
        self._scale = 1.0

    @functools.cached_property
    def tables(self) -> Tables:
        """What the Triton kernels work on."""
        from megascale.optim.fused import Tables

        return Tables()

    def scale_gradients(self, factor: float) -> None:
        """Have the next `step` multiply gradients with `factor` first; clips without a pass of its own."""
        self._scale = factor

    def take_scale(self) -> float:
        """The factor of this step; from here on it is 1 again."""
        factor, self._scale = self._scale, 1.0
        return factor

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = evaluated(closure)
        batch, scale = with_gradients(self), self.take_scale()
        # torch's name for what the fused kernel divides gradients by as it reads them.
        self.grad_scale = (
            torch.full((), 1 / scale, device=batch[0].parameters[0].device)
            if batch and scale != 1.0
            else None
        )
        super().step()
        return loss

    def allocate_state(self) -> None:
        """Create `step` (fp32 scalar) and the moments for every parameter that has none."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    place = parameter.device if group["fused"] else torch.device("cpu")
                    self.state[parameter] = {"step": torch.tensor(0.0, device=place)} | {
                        name: torch.zeros_like(parameter) for name in self.moments
                    }

    @property
    def updates(self) -> int:
        """How many times parameters were updated; every parameter has the same number."""
        return max((int(state["step"]) for state in self.state.values()), default=0)

    @updates.setter
    def updates(self, count: int) -> None:
        for state in self.state.values():
            state["step"].fill_(float(count))


class ParameterBatch(NamedTuple):
    """What one group has to update: parameters with their gradients, and the group's settings."""

    settings: dict[str, Any]
    parameters: list[Tensor]
    gradients: list[Tensor]


def with_gradients(optimizer: AdamW) -> list[ParameterBatch]:
    """The parameters of each group that have a gradient; groups without any are left out."""
    found = []
    for group in optimizer.param_groups:
        pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
        if pairs:
            found.append(ParameterBatch(group, [p for p, _ in pairs], [gradient for _, gradient in pairs]))
    return found


def fuses(batch: list[ParameterBatch]) -> bool:
    """Whether the tensors are where Triton kernels run."""
    return bool(batch) and batch[0].parameters[0].is_cuda


def multiply_gradients(batch: list[ParameterBatch], factor: float) -> None:
    """Scale all gradients in place."""
    if factor != 1.0:
        for group in batch:
            torch._foreach_mul_(group.gradients, factor)


def blocks(*lists: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of several lists, matching by position, in flat pieces.

    Pieces are so small that all operations on one find it in a CPU's cache, which is what fusing is for. GPUs
    have `megascale.optim.fused`.
    """
    for tensors in zip(*lists, strict=True):
        yield from zip(*(tensor.view(-1).split(CACHED) for tensor in tensors), strict=True)


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """What `closure` returns, with gradients enabled; torch's convention for `step`."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
