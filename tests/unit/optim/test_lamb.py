from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from megascale.optim import lamb
from megascale.optim.lamb import Lamb, Range

LR, DECAY, BETAS, EPS = 0.1, 0.1, (0.9, 0.95), 1e-6
STEPS = 6
SHAPES = {"wide": (6, 4), "tall": (12, 2), "norm": (8,)}
"""`norm` takes neither weight decay nor trust ratio."""


def values(seed: int) -> dict[str, NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape) for name, shape in SHAPES.items()}


def reference(weight_decay: float = DECAY) -> dict[str, NDArray[np.float64]]:
    """Algorithm 2 of You et al. 2020 on whole parameters in float64."""
    weights = values(0)
    means = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    squares = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(1, STEPS + 1):
        for name, gradient in values(step).items():
            means[name] = BETAS[0] * means[name] + (1 - BETAS[0]) * gradient
            squares[name] = BETAS[1] * squares[name] + (1 - BETAS[1]) * gradient**2
            mean = means[name] / (1 - BETAS[0] ** step)
            square = squares[name] / (1 - BETAS[1] ** step)
            decay = 0.0 if name == "norm" else weight_decay
            update = mean / (np.sqrt(square) + EPS) + decay * weights[name]
            ratio = np.linalg.norm(weights[name]) / np.linalg.norm(update)
            ratio = 1.0 if name == "norm" else ratio
            weights[name] = weights[name] - LR * ratio * update
    return weights


def make(tensors: dict[str, Tensor], weight_decay: float = DECAY) -> Lamb:
    matrices = [tensor for name, tensor in tensors.items() if name != "norm"]
    norms = [tensors["norm"]] if "norm" in tensors else []
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": norms, "weight_decay": 0.0, "trust_ratio": False},
    ]
    return Lamb(groups, lr=LR, betas=BETAS, eps=EPS)


def train(optimizer: Lamb, tensors: dict[str, Tensor], cut: dict[str, slice]) -> None:
    for step in range(1, STEPS + 1):
        for name, gradient in values(step).items():
            if name in tensors:
                flat = torch.from_numpy(gradient).flatten()[cut[name]]
                tensors[name].grad = flat.clone().view(tensors[name].shape)
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [DECAY, 0.0])
def test_whole_parameters_follow_the_algorithm(weight_decay: float) -> None:
    tensors = {name: torch.from_numpy(value).requires_grad_() for name, value in values(0).items()}
    train(make(tensors, weight_decay), tensors, dict.fromkeys(SHAPES, slice(None)))
    for name, expected in reference(weight_decay).items():
        np.testing.assert_allclose(tensors[name].detach().numpy(), expected, rtol=1e-6, atol=1e-7)


class Ring:
    """All-reduce between the threads of a test, in place of a process group."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=30)
        self._parts: list[Tensor] = []
        self.calls = 0

    def all_reduce(self, tensor: Tensor, group: Ring) -> None:
        assert group is self
        self._parts.append(tensor.clone())
        self._barrier.wait()
        total = torch.stack(self._parts).sum(dim=0)
        if self._barrier.wait() == 0:
            self._parts.clear()
            self.calls += 1
        self._barrier.wait()
        tensor.copy_(total)


def test_ranges_on_several_ranks_follow_the_same_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wide` and `tall` cut in the middle of rows, `norm` held whole by both ranks but counted once."""
    ring = Ring(2)
    monkeypatch.setattr(lamb.distributed, "all_reduce", ring.all_reduce)
    cuts = [
        {"wide": slice(0, 7), "tall": slice(0, 24), "norm": slice(None)},
        {"wide": slice(7, 24), "norm": slice(None)},
    ]
    start = {name: torch.from_numpy(value).flatten() for name, value in values(0).items()}
    held = [
        {name: start[name][cut].clone().requires_grad_() for name, cut in cuts[r].items()} for r in (0, 1)
    ]
    index = {name: position for position, name in enumerate(SHAPES)}

    def rank(number: int) -> None:
        optimizer = make(held[number])
        ranges = {
            tensor: Range(index[name], counted=name != "norm" or number == 0)
            for name, tensor in held[number].items()
        }
        optimizer.set_ranges(ranges, len(SHAPES), ring, torch.device("cpu"))  # type: ignore[arg-type]
        train(optimizer, held[number], cuts[number])

    threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    expected = {name: value.reshape(-1) for name, value in reference().items()}
    for number in (0, 1):
        for name, tensor in held[number].items():
            np.testing.assert_allclose(
                tensor.detach().numpy(), expected[name][cuts[number][name]], rtol=1e-6, err_msg=name
            )
    assert ring.calls == STEPS


def test_a_parameter_at_zero_can_leave_it() -> None:
    """Its norm is 0, so the ratio must be 1: otherwise it would stay there for ever."""
    weight = torch.zeros(2, 2, requires_grad=True)
    optimizer = Lamb([{"params": [weight], "weight_decay": DECAY}], lr=LR, betas=BETAS, eps=EPS)
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -LR))


def test_the_number_of_updates_is_part_of_the_state() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    optimizer = Lamb([{"params": [weight], "weight_decay": DECAY}], lr=LR, betas=BETAS, eps=EPS)
    optimizer.allocate_state()
    assert optimizer.updates == 0
    optimizer.updates = 41
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert optimizer.updates == 42
