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

from megascale.optim.adamw import AdamW, blocks, evaluated, with_gradients


class Lion(AdamW):
    """Lion on flat ranges: every value is updated by itself, so nothing has to be known of other ranks."""

    moments: ClassVar[tuple[str, ...]] = ("exp_avg",)
    torch_fuses: ClassVar[bool] = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = evaluated(closure)
        self.allocate_state()
        for todo in with_gradients(self):
            group, parameters, gradients = todo.settings, todo.parameters, todo.gradients
            beta1, beta2 = group["betas"]
            means = [self.state[p]["exp_avg"] for p in parameters]
            torch._foreach_add_([self.state[p]["step"] for p in parameters], 1)
            for w, g, m in blocks(parameters, gradients, means):
                updates = torch._foreach_lerp(m, g, 1 - beta1)  # noqa: SLF001 - no other name
                torch._foreach_sign_(updates)
                torch._foreach_mul_(w, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(w, updates, alpha=-group["lr"])
                torch._foreach_lerp_(m, g, 1 - beta2)
        return loss
