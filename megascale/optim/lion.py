"""Lion (Chen et al. 2023, algorithm 2): the sign of a momentum, half of Adam's state.

    u = sign(b1 m + (1 - b1) g)
    w = w - lr * (u + weight_decay * w)
    m = b2 m + (1 - b2) g

20 bytes of traffic per parameter: w, g and m read, w and m written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from megascale.optim.adamw import (
    AdamW,
    ParameterBatch,
    blocks,
    evaluated,
    fuses,
    multiply_gradients,
    with_gradients,
)


class Lion(AdamW):
    """Lion on flat ranges: each value is updated independently, without communication between ranks."""

    moments: ClassVar[tuple[str, ...]] = ("exp_avg",)
    torch_fuses: ClassVar[bool] = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = evaluated(closure)
        self.allocate_state()
        batch, scale = with_gradients(self), self.take_scale()
        for group in batch:
            torch._foreach_add_([self.state[p]["step"] for p in group.parameters], 1)
        if fuses(batch):
            self._step_fused(batch, scale)
            return loss
        multiply_gradients(batch, scale)
        for settings, parameters, gradients in batch:
            beta1, beta2 = settings["betas"]
            for w, g, m in blocks(parameters, gradients, self._means(parameters)):
                update = torch.lerp(m, g, 1 - beta1).sign_()
                w.mul_(1 - settings["lr"] * settings["weight_decay"]).sub_(update, alpha=settings["lr"])
                m.lerp_(g, 1 - beta2)
        return loss

    def _means(self, parameters: list[Tensor]) -> list[Tensor]:
        return [self.state[p]["exp_avg"] for p in parameters]

    def _step_fused(self, batch: list[ParameterBatch], scale: float) -> None:
        for index, (settings, parameters, gradients) in enumerate(batch):
            beta1, beta2 = settings["betas"]
            table = self.tables.of(index, parameters, gradients, self._means(parameters))
            table.lion(
                lr=settings["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=settings["weight_decay"],
                scale=scale,
            )
