from __future__ import annotations

import numpy as np
import torch

from megascale.optim.adamw import AdamW
from megascale.optim.lion import Lion

LR, DECAY, BETAS, STEPS = 0.01, 0.1, (0.9, 0.99), 7


def gradients(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(6, 4))


def reference() -> np.ndarray:
    """Algorithm 2 of Chen et al. 2023 in float64."""
    weight, mean = gradients(0), np.zeros((6, 4))
    for step in range(1, STEPS + 1):
        gradient = gradients(step)
        update = np.sign(BETAS[0] * mean + (1 - BETAS[0]) * gradient)
        weight = weight - LR * (update + DECAY * weight)
        mean = BETAS[1] * mean + (1 - BETAS[1]) * gradient
    return weight


def make(tensors: list[torch.Tensor]) -> Lion:
    return Lion([{"params": tensors, "weight_decay": DECAY}], lr=LR, betas=BETAS, eps=0.0)


def test_lion_follows_the_algorithm_whole_and_in_ranges() -> None:
    for cuts in ([slice(None)], [slice(0, 7), slice(7, 24)]):
        start = torch.from_numpy(gradients(0)).flatten()
        parts = [start[cut].clone().requires_grad_() for cut in cuts]
        optimizer = make(parts)
        for step in range(1, STEPS + 1):
            flat = torch.from_numpy(gradients(step)).flatten()
            for part, cut in zip(parts, cuts, strict=True):
                part.grad = flat[cut].clone()
            optimizer.step()
        ours = torch.cat([part.detach() for part in parts]).view(6, 4).numpy()
        np.testing.assert_allclose(ours, reference(), rtol=1e-12)


def test_lion_keeps_half_of_adams_state() -> None:
    weight = torch.ones(6, 4, requires_grad=True)
    sizes = {}
    for optimizer in (make([weight]), AdamW([{"params": [weight]}], lr=LR, betas=BETAS, eps=1e-8)):
        optimizer.allocate_state()
        sizes[type(optimizer)] = sum(value.numel() for value in optimizer.state[weight].values()) - 1
    assert sizes == {Lion: 24, AdamW: 48}
