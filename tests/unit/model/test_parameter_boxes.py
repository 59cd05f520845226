from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from megascale.model.gpt import Gpt
from megascale.model.parameters import initial_values, parameter_boxes
from megascale.model.shape import ModelShape

Build = Callable[[ModelShape, int], Gpt]
CPU = torch.device("cpu")


def shape_of(**changes: object) -> ModelShape:
    sizes = {"num_layers": 2, "hidden_size": 16, "attention_heads": 4, "kv_heads": 2, "ffn_hidden_size": 24}
    return ModelShape(**(sizes | changes))  # type: ignore[arg-type]


def test_names_are_global_and_free_of_the_engine(build: Build) -> None:
    shape = shape_of()
    boxes = {box.name: box.global_shape for box in parameter_boxes(build(shape, 8), shape)}
    layer = {"norm.weight": (16,), "norm.bias": (16,), "attention.proj.weight": (16, 16)}
    layer |= {"attention.qkv.weight": (32, 16), "mlp.fc1.weight": (24, 16), "mlp.fc2.weight": (16, 24)}
    assert boxes == {
        "embedding.weight": (320, 16),
        "final_norm.weight": (16,),
        "final_norm.bias": (16,),
        **{f"layers.{index}.{name}": size for index in (0, 1) for name, size in layer.items()},
    }


def test_a_swiglu_projection_is_one_box_of_both_halves(build: Build) -> None:
    shape = shape_of(activation="swiglu", tied_embeddings=False)
    boxes = {box.name: box for box in parameter_boxes(build(shape, 8), shape)}
    assert boxes["layers.1.mlp.fc1.weight"].global_shape == (2, 24, 16)
    assert boxes["layers.1.mlp.fc1.weight"].parameter.shape == (48, 16)
    assert boxes["output.weight"].global_shape == (320, 16)


def test_initial_values_depend_on_name_and_seed_only() -> None:
    shape = shape_of()

    def draw(name: str, seed: int) -> torch.Tensor:
        return initial_values(name, (32, 16), shape, seed, CPU)

    torch.rand(3)  # whatever else was drawn before does not matter
    name = "layers.0.attention.qkv.weight"
    assert torch.equal(draw(name, 1), draw(name, 1))
    assert not torch.equal(draw(name, 1), draw(name, 2))
    assert not torch.equal(draw(name, 1), draw("layers.1.attention.qkv.weight", 1))


def test_initial_spread_norms_and_padding() -> None:
    shape = shape_of(num_layers=8, init_std=0.5)
    weight = initial_values("layers.0.mlp.fc1.weight", (400, 400), shape, 1, CPU)
    assert weight.std().item() == pytest.approx(0.5, rel=0.02)
    residual = initial_values("layers.0.mlp.fc2.weight", (400, 400), shape, 1, CPU)
    assert residual.std().item() == pytest.approx(0.5 / 4, rel=0.02)
    assert initial_values("final_norm.weight", (4,), shape, 1, CPU).tolist() == [1.0] * 4
    assert initial_values("final_norm.bias", (4,), shape, 1, CPU).tolist() == [0.0] * 4
    embedding = initial_values("embedding.weight", (320, 16), shape, 1, CPU)
    assert embedding[256].abs().sum() > 0
    assert embedding[257:].abs().sum() == 0
