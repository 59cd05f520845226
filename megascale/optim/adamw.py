"""AdamW as the base of every optimizer here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

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


@dataclass(frozen=True, slots=True)
class Todo:
    """What one group has to update: parameters with their gradients, and the group's settings."""

    settings: dict[str, Any]
    parameters: list[Tensor]
    gradients: list[Tensor]


def with_gradients(optimizer: AdamW) -> list[Todo]:
    """The parameters of each group that have a gradient; groups without any are left out."""
    found = []
    for group in optimizer.param_groups:
        pairs = [(p, p.grad) for p in group["params"] if p.grad is not None]
        if pairs:
            found.append(Todo(group, [p for p, _ in pairs], [gradient for _, gradient in pairs]))
    return found


def blocks(*lists: list[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """The tensors of several lists, matching by position, in pieces for multi-tensor operations.

    On a GPU everything at once. A CPU runs such operations one after the other: there pieces are so small
    that all operations find them in the cache, which is what fusing is for.
    """
    if lists[0][0].is_cuda:
        yield lists
        return
    for tensors in zip(*lists, strict=True):
        yield from zip(*([[piece] for piece in t.view(-1).split(CACHED)] for t in tensors), strict=True)


def evaluated(closure: Callable[[], float] | None) -> float | None:
    """What `closure` returns, with gradients enabled; torch's convention for `step`."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
