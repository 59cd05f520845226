"""The model against the same mathematics in plain torch, with no megatron-core in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megascale.model.attention import Reference as Attention
from megascale.model.gpt import Gpt
from megascale.model.parameters import parameter_boxes
from megascale.model.shape import ModelShape

Build = Callable[[ModelShape, int], Gpt]
SEQUENCE = 12


def rotate(x: Tensor, base: float) -> Tensor:
    """Rotary positions of (batch, heads, sequence, size), halves rotated against each other."""
    size = x.size(-1)
    frequencies = base ** (-torch.arange(0, size, 2) / size)
    angles = torch.arange(x.size(2))[:, None] * frequencies[None, :]
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
        [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], dim=-1
    )


class Reference:
    """Token losses of a GPT from a dictionary of its canonical weights."""

    def __init__(self, weights: dict[str, Tensor], shape: ModelShape) -> None:
        self.weights = weights
        self.shape = shape

    def norm(self, name: str, x: Tensor) -> Tensor:
        if self.shape.norm == "rmsnorm":
            return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weights[f"{name}.weight"]
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def head_norm(self, name: str, x: Tensor) -> Tensor:
        return self.norm(name, x) if self.shape.qk_norm else x

    def attention(self, index: int, x: Tensor) -> Tensor:
        layer = f"layers.{index}"
        shape, (batch, sequence, _) = self.shape, x.shape
        per_group = shape.attention_heads // shape.kv_heads
        # Fused rows: for each key-value head its query heads, then its key, then its value.
        fused = x @ self.weights[f"{layer}.attention.qkv.weight"].t()
        grouped = fused.view(batch, sequence, shape.kv_heads, per_group + 2, shape.head_size)
        query = grouped[..., :per_group, :].reshape(batch, sequence, shape.attention_heads, -1)
        query, key, value = (
            part.transpose(1, 2) for part in (query, grouped[..., -2, :], grouped[..., -1, :])
        )
        query, key = (
            rotate(self.head_norm(f"{layer}.attention.{name}_norm", x), shape.rotary_base)
            for name, x in (("q", query), ("k", key))
        )
        # Every second layer sees all keys.
        window = shape.window if index % 2 == 0 else None
        mixed = Attention()(*(part.transpose(1, 2) for part in (query, key, value)), window, None)
        mixed = mixed.reshape(batch, sequence, -1)
        return mixed @ self.weights[f"{layer}.attention.proj.weight"].t()

    def mlp(self, layer: str, x: Tensor) -> Tensor:
        if self.shape.experts is None:
            return self.one_mlp(f"{layer}.mlp", x)
        chances = torch.softmax(x @ self.weights[f"{layer}.mlp.router.weight"].t(), dim=-1)
        best, chosen = chances.topk(self.shape.experts_per_token, dim=-1)
        if self.shape.experts_per_token > 1:
            best = best / best.sum(-1, keepdim=True)
        shares = torch.zeros_like(chances).scatter(-1, chosen, best)
        parts = [
            shares[..., e : e + 1] * self.one_mlp(f"{layer}.mlp.experts.{e}", x)
            for e in range(self.shape.experts)
        ]
        return torch.stack(parts).sum(dim=0)

    def one_mlp(self, mlp: str, x: Tensor) -> Tensor:
        into = self.weights[f"{mlp}.fc1.weight"]
        if self.shape.activation == "swiglu":
            gate, up = into.view(2, -1, x.size(-1))
            inner = functional.silu(x @ gate.t()) * (x @ up.t())
        else:
            inner = functional.gelu(x @ into.t())
        return inner @ self.weights[f"{mlp}.fc2.weight"].t()

    def losses(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.weights["embedding.weight"][tokens]
        for index in range(self.shape.num_layers):
            layer = f"layers.{index}"
            normed = self.norm(f"{layer}.norm", x)
            if self.shape.block == "parallel":
                x = x + self.attention(index, normed) + self.mlp(layer, normed)
            else:
                x = x + self.attention(index, normed)
                x = x + self.mlp(layer, self.norm(f"{layer}.mlp_norm", x))
        output = "embedding.weight" if self.shape.tied_embeddings else "output.weight"
        logits = self.norm("final_norm", x) @ self.weights[output].t()
        return functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")


def shape_of(**choices: Any) -> ModelShape:
    # Weights large enough that every part of the block matters to the loss.
    sizes: dict[str, Any] = {"num_layers": 2, "hidden_size": 32, "attention_heads": 4, "kv_heads": 2}
    sizes |= {"ffn_hidden_size": 48, "window": 5, "window_pattern": "SL", "init_std": 0.3}
    return ModelShape(**(sizes | choices))


@pytest.mark.parametrize(
    "choices",
    [
        {"block": "parallel"},
        {"block": "serial"},
        {"block": "parallel", "norm": "rmsnorm", "activation": "swiglu", "tied_embeddings": False},
        {"block": "serial", "norm": "rmsnorm", "activation": "swiglu", "tied_embeddings": False},
        {"block": "parallel", "qk_norm": True},
        {"block": "serial", "norm": "rmsnorm", "qk_norm": True},
    ],
)
def test_losses_and_gradients_equal_plain_torch(choices: dict[str, Any], build: Build) -> None:
    shape = shape_of(**choices)
    model = build(shape, SEQUENCE)
    boxes = list(parameter_boxes(model, shape))
    rows = torch.randint(0, shape.vocab_size, (3, SEQUENCE + 1))
    tokens, labels = rows[:, :-1], rows[:, 1:]
    reference = Reference({box.name: box.parameter for box in boxes}, shape)
    ours, theirs = model(tokens, None, None, labels=labels), reference.losses(tokens, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    parameters = [box.parameter for box in boxes]
    for mine, other in zip(
        torch.autograd.grad(ours.mean(), parameters),
        torch.autograd.grad(theirs.mean(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("block", "chosen"), [("parallel", 2), ("serial", 2), ("parallel", 1)])
def test_experts_equal_plain_torch(block: str, chosen: int, build: Build) -> None:
    """Losses only: gradients hold the balancing loss too."""
    shape = shape_of(block=block, activation="swiglu", experts=4, experts_per_token=chosen)
    model = build(shape, SEQUENCE)
    reference = Reference({box.name: box.parameter for box in parameter_boxes(model, shape)}, shape)
    tokens = torch.randint(0, shape.vocab_size, (3, SEQUENCE))
    ours = model(tokens, None, None, labels=tokens)
    torch.testing.assert_close(ours, reference.losses(tokens, tokens), rtol=1e-4, atol=1e-4)
    ours.mean().backward()
    for box in parameter_boxes(model, shape):
        if "router" in box.name:
            assert box.parameter.grad is not None
            assert box.parameter.grad.abs().sum() > 0


def test_a_token_is_not_seen_by_those_before_it_or_outside_its_window(build: Build) -> None:
    shape = ModelShape(
        num_layers=1,
        hidden_size=32,
        attention_heads=4,
        kv_heads=4,
        ffn_hidden_size=64,
        window=3,
        tied_embeddings=False,
    )
    model = build(shape, SEQUENCE)
    tokens = torch.zeros(1, SEQUENCE, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 4] = 1
    labels = torch.zeros_like(tokens)
    differs = model(tokens, None, None, labels=labels) != model(changed, None, None, labels=labels)
    assert differs[0].nonzero().flatten().tolist() == [4, 5, 6]
