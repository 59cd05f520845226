"""Clipping rides along with the step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megascale.optim.adamw import AdamW
from megascale.optim.lamb import Lamb
from megascale.optim.lion import Lion

FACTORS = (1.0, 0.03, 0.5, 1.0)


def train(kind: type[AdamW], *, ride: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((40, 3), (7,))]
    optimizer = kind([{"params": weights, "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.95), eps=1e-6)
    for factor in FACTORS:
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
            if not ride:
                weight.grad.mul_(factor)
        if ride:
            optimizer.scale_gradients(factor)
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("kind", [AdamW, Lamb, Lion])
def test_a_factor_counts_for_one_step_as_if_gradients_had_been_scaled(kind: type[AdamW]) -> None:
    for ours, scaled in zip(train(kind, ride=True), train(kind, ride=False), strict=True):
        torch.testing.assert_close(ours, scaled, rtol=1e-6, atol=1e-7)
