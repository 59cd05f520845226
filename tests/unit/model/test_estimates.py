"""Computed sizes against built models, known totals and the paper's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megascale.job.megatron import Model
from megascale.model.flops import training_flops
from megascale.model.gpt import Gpt
from megascale.model.inventory import (
    active_parameter_count,
    parameter_count,
    stage_parameter_count,
    weights,
)
from megascale.model.layout import Layout
from megascale.model.memory import layer_values, layers_in_flight, stage_memory
from megascale.model.parameters import parameter_boxes
from megascale.model.shape import ModelShape
from megascale.model.traffic import bubble, traffic

SHAPE = ModelShape(num_layers=4, hidden_size=64, attention_heads=4, kv_heads=2, ffn_hidden_size=160)
CHOICES: list[dict[str, Any]] = [
    {},
    {"block": "serial", "norm": "rmsnorm", "activation": "swiglu", "tied_embeddings": False},
    {"qk_norm": True},
    {"block": "serial", "experts": 4, "experts_per_token": 2, "activation": "swiglu"},
]


def preset(name: str) -> ModelShape:
    return ModelShape.of(Model.model_validate({"preset": name}))


@pytest.mark.parametrize("choices", CHOICES)
def test_the_inventory_is_what_a_built_model_has(choices: dict[str, Any], build: Callable[..., Gpt]) -> None:
    shape = replace(SHAPE, **choices)
    built = {box.name: (box.global_shape, box.sharded) for box in parameter_boxes(build(shape, 8), shape)}
    assert {weight.name: (weight.shape, weight.sharded) for weight in weights(shape)} == built


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("gpt-175b", 175e9, 175e9),
        ("gpt-530b", 530e9, 530e9),
        ("llama-7b", 6.738e9, 6.738e9),
        ("llama-13b", 13.016e9, 13.016e9),
        ("llama-65b", 65.286e9, 65.286e9),
        ("dbrx", 132e9, 36e9),
    ],
)
def test_presets_have_the_published_sizes(name: str, total: float, active: float) -> None:
    assert parameter_count(preset(name)) == pytest.approx(total, rel=0.004)
    assert active_parameter_count(preset(name)) == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize(
    ("tokens_per_second", "gpus", "mfu"),
    [(49.0e3, 256, 0.653), (176.9e3, 1024, 0.590), (531.9e3, 3072, 0.591), (1984.0e3, 12288, 0.552)],
)
def test_the_papers_throughput_gives_the_papers_mfu(tokens_per_second: float, gpus: int, mfu: float) -> None:
    """MegaScale table 2: 175B, sequences of 2048, A100 at 312 TFLOP/s. Its own columns agree to about 1%."""
    per_token = training_flops(preset("gpt-175b"), 1, 2048, "square") / 2048
    assert tokens_per_second * per_token / (gpus * 312e12) == pytest.approx(mfu, rel=0.02)


def test_stages_hold_the_model_and_a_copy_of_tied_embeddings() -> None:
    layout = Layout(tensor=1, pipeline=2, data=1, interleave=2)
    untied = replace(SHAPE, tied_embeddings=False)
    assert sum(stage_parameter_count(untied, layout, stage) for stage in (0, 1)) == parameter_count(untied)
    embedding = SHAPE.padded_vocab_size * SHAPE.hidden_size
    held = sum(stage_parameter_count(SHAPE, layout, stage) for stage in (0, 1))
    assert held == parameter_count(SHAPE) + embedding
    halves = Layout(tensor=2, pipeline=1, data=1)
    replicated = sum(weight.size for weight in weights(SHAPE) if not weight.sharded)
    assert 2 * stage_parameter_count(SHAPE, halves, 0) == parameter_count(SHAPE) + replicated


def kept_values(model: Gpt, sequence: int) -> int:
    """Values that autograd keeps between the passes, parameters left out."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    tokens = torch.zeros(8, sequence, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, None, None, labels=tokens)
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    "choices", [{}, {"block": "serial"}, {"block": "serial", "activation": "swiglu"}, {"qk_norm": True}]
)
def test_predicted_activations_are_what_autograd_keeps(
    choices: dict[str, Any], build: Callable[..., Gpt]
) -> None:
    shape, sequence = replace(SHAPE, **choices), 64
    more = kept_values(build(replace(shape, num_layers=3), sequence), sequence)
    fewer = kept_values(build(replace(shape, num_layers=1), sequence), sequence)
    predicted = layer_values(shape, Layout(tensor=1, pipeline=1, data=1))
    if shape.activation == "swiglu":
        predicted += 2 * shape.ffn_hidden_size  # The CPU has no fused kernel: also silu(x) and y + 0.
    assert (more - fewer) / 2 == pytest.approx(predicted * 8 * sequence, rel=0.05)


def test_the_first_stage_holds_the_most_micro_batches() -> None:
    plain, chunked = Layout(1, 4, 1), Layout(1, 4, 1, interleave=2)
    shape = replace(SHAPE, num_layers=8)
    assert [layers_in_flight(shape, plain, stage, 16) for stage in range(4)] == [8, 6, 4, 2]
    # Warm-up of the interleaved schedule: 2 (p - 1 - stage) + (v - 1) p chunks, and one more.
    assert [layers_in_flight(shape, chunked, stage, 16) for stage in range(4)] == [11, 9, 7, 5]
    assert layers_in_flight(shape, plain, 0, 2) == 4


def test_memory_of_a_gpu() -> None:
    layout = Layout(tensor=2, pipeline=1, data=4)
    batch = {"sequence_length": 32, "micro_batch": 1, "micro_batches": 2}
    lamb, lion = (stage_memory(SHAPE, layout, 0, optimizer=name, **batch) for name in ("lamb", "lion"))
    assert lamb.weights == 2 * lamb.parameters
    assert lamb.gradients == 4 * lamb.parameters
    assert lamb.optimizer == pytest.approx(12 * lamb.parameters / 4, abs=1)
    assert lion.optimizer == pytest.approx(8 * lamb.parameters / 4, abs=1)
    assert lamb.activations_recomputed < lamb.activations
    assert lamb.total(recompute=False) - lamb.total(recompute=True) == (
        lamb.activations - lamb.activations_recomputed
    )


def test_links_follow_from_where_ranks_are() -> None:
    batch = {"sequence_length": 32, "micro_batch": 1, "micro_batches": 4}
    layout = Layout(tensor=2, pipeline=2, data=4)
    links = {item.dimension: item.link for item in traffic(SHAPE, layout, gpus_per_node=8, **batch)}
    assert links == {"tensor": "node", "data": "node", "pipeline": "network"}
    data = [item for item in traffic(SHAPE, layout, gpus_per_node=8, **batch) if item.dimension == "data"]
    held = stage_parameter_count(SHAPE, layout, 0)
    assert [item.bytes for item in data] == [round(0.75 * held * 4), round(0.75 * held * 2)]


def test_the_bubble() -> None:
    assert bubble(Layout(1, 8, 1, interleave=6), 32) == 7 / (6 * 32)
    assert bubble(Layout(1, 1, 8), 4) == 0.0
