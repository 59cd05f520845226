"""AdamW, the base class of all optimizers of this package."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megascale.optim.fused import Tables

CACHED: Final = 16_384
"""Values per block: four fp32 tensors and a temporary take 320 KB and fit most second-level caches."""


class AdamW(torch.optim.AdamW):
    """torch's AdamW, with state that can be allocated before the first step and filled from a checkpoint.

    megatron-core's `DistributedOptimizer` accepts only Adam and AdamW, so all optimizers are subclasses.
    torch's fused kernel updates the parameters, on CPUs as well, with 28 bytes of traffic per parameter.

    Attributes:
        moments: names of the state tensors that have the shape of their parameter.
        torch_fuses: whether `step` runs torch's fused kernel.
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
        """The address tables of the Triton kernels."""
        from megascale.optim.fused import Tables

        return Tables()

    def scale_gradients(self, factor: float) -> None:
        """Have the next `step` multiply gradients by `factor` as it reads them: clipping for free."""
        self._scale = factor

    def take_scale(self) -> float:
        """The factor of this step; resets it to 1."""
        factor, self._scale = self._scale, 1.0
        return factor

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = evaluated(closure)
        batch, scale = with_gradients(self), self.take_scale()
        # The fused kernel divides gradients by this as it reads them.
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
        """Number of updates so far, the same for every parameter."""
        return max((int(state["step"]) for state in self.state.values()), default=0)

    @updates.setter
    def updates(self, count: int) -> None:
        for state in self.state.values():
            state["step"].fill_(float(count))


class ParameterBatch(NamedTuple):
    """The parameters of one group that have a gradient, with their gradients and the group's settings."""

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
    """Whether the Triton kernels can update these tensors."""
    return bool(batch) and batch[0].parameters[0].is_cuda


def multiply_gradients(batch: list[ParameterBatch], factor: float) -> None:
    """Scale all gradients in place."""
    if factor != 1.0:
        for group in batch:
            torch._foreach_mul_(group.gradients, factor)


def blocks(*lists: list[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Flat blocks of the tensors of several lists, which match by position.

    A block stays in a CPU's cache for all operations on it. On GPUs `megascale.optim.fused` does the same.
    """
    for tensors in zip(*lists, strict=True):
        yield from zip(*(tensor.view(-1).split(CACHED) for tensor in tensors), strict=True)


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """The result of `closure` with gradients enabled, as torch's optimizers call it in `step`."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
