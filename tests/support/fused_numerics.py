"""Runs the optimizers' Triton kernels in Triton's interpreter, on a CPU: prints errors and bytes as JSON.

A process of its own, since TRITON_INTERPRET=1 has to be there before Triton is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime import interpreter

from megascale.optim import lamb as lamb_module
from megascale.optim import lion as lion_module
from megascale.optim.factors import Factors
from megascale.optim.fused import CHUNK, TensorTable
from megascale.optim.lamb import Lamb, turn_into_direction
from megascale.optim.lion import Lion

EVEN = [4, 700, CHUNK, 2 * CHUNK + 4096]
"""Sizes of which threads move four values at once."""
SIZES = [3, 700, CHUNK, CHUNK + 5, 2 * CHUNK + 4096]


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Bytes that kernels load and store by mask and element type."""
    builder = interpreter.interpreter_builder
    found = {"bytes": 0}
    load, store = builder.create_masked_load, builder.create_masked_store

    def count(handle: Any, mask: Any) -> None:
        found["bytes"] += int(mask.data.sum()) * handle.get_element_ty().primitive_bitwidth // 8

    def counting_load(pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        count(pointers, mask)
        return load(pointers, mask, *rest, **named)

    def counting_store(pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        count(pointers, mask)
        return store(pointers, value, mask, *rest, **named)

    builder.create_masked_load, builder.create_masked_store = counting_load, counting_store
    yield found
    builder.create_masked_load, builder.create_masked_store = load, store


def tensors(seed: int, sizes: list[int] = SIZES, *, positive: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(size, generator=generator) for size in sizes]
    return [t.abs_() for t in made] if positive else made


def worst(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def lamb() -> dict[str, float]:
    w, g, m, v = tensors(1), tensors(2), tensors(3), tensors(4, positive=True)
    w2, g2, m2, v2 = ([t.clone() for t in part] for part in (w, g, m, v))
    settings = {"betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    table, factors = TensorTable(w, g, m, v), Factors.of(settings, 3.0)
    with counted() as moved:
        squares = table.lamb_directions(factors, 0.5)
        table.lamb_apply(torch.arange(1.0, len(SIZES) + 1) * 1e-3)
    for weight, gradient, mean, square in zip(w2, g2, m2, v2, strict=True):
        turn_into_direction(weight, gradient.mul_(0.5), mean, square, torch.tensor(3.0), factors)
    exact = torch.tensor(
        [[float(t.double().square().sum()) for t in pair] for pair in zip(w2, g2, strict=True)]
    )
    for index, (weight, direction) in enumerate(zip(w2, g2, strict=True)):
        weight.sub_((index + 1) * 1e-3 * direction)
    return {
        "lambError": max(worst(w, w2), worst(g, g2), worst(m, m2), worst(v, v2)),
        "squaresError": float(((squares - exact) / exact).abs().max()),
        "lambBytes": moved["bytes"] / sum(SIZES),
    }


def lion() -> dict[str, float]:
    w, g, m = tensors(1), tensors(2), tensors(3)
    w2, g2, m2 = ([t.clone() for t in part] for part in (w, g, m))
    with counted() as moved:
        TensorTable(w, g, m).lion(lr=1e-3, beta1=0.9, beta2=0.99, weight_decay=0.1, scale=0.5)
    for weight, gradient, mean in zip(w2, g2, m2, strict=True):
        gradient.mul_(0.5)
        weight.mul_(1 - 1e-4).sub_(1e-3 * torch.lerp(mean, gradient, 0.1).sign())
        mean.lerp_(gradient, 0.01)
    return {"lionError": max(worst(w, w2), worst(m, m2)), "lionBytes": moved["bytes"] / sum(SIZES)}


def whole_steps(kind: type[Lamb] | type[Lion]) -> float:
    """Three steps of the optimizer with clipped gradients, fused against one after the other."""
    ends = []
    for fused in (True, False):
        for module in (lamb_module, lion_module):
            module.fuses = lambda _todo, fused=fused: fused  # type: ignore[assignment]
        weights = [t.requires_grad_() for t in tensors(1, EVEN)]
        groups: list[dict[str, Any]] = [
            {"params": weights[::2], "weight_decay": 0.1},
            {"params": weights[1::2], "weight_decay": 0.0},
        ]
        optimizer = kind(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-6)
        for step in range(3):
            for weight, gradient in zip(weights, tensors(10 + step, EVEN), strict=True):
                weight.grad = gradient
            optimizer.scale_gradients(0.7)
            optimizer.step()
        ends.append([weight.detach() for weight in weights])
    return worst(*ends)


if __name__ == "__main__":
    print(json.dumps(lamb() | lion() | {"lambSteps": whole_steps(Lamb), "lionSteps": whole_steps(Lion)}))
