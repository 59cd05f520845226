"""Names of parameters and their boxes within the whole model, independent of the layout.

Every parameter of a rank is a box of a tensor of the whole model, under a canonical name with the global
layer index: `embedding.weight`, `layers.3.attention.qkv.weight`, `final_norm.weight`, `output.weight`.
Initial values are drawn per canonical tensor and then split, so a model starts from the same values under
every layout; checkpoints use the same names and boxes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from torch import nn

from megascale.model.gpt import Gpt
from megascale.model.shape import ModelShape

_LAYER: Final = re.compile(r"^decoder\.layers\.(\d+)\.(.+)$")


@dataclass(frozen=True, slots=True)
class ParameterBox:
    """One parameter of this rank as a box of the whole model's tensor.

    Attributes:
        name: canonical name; both copies of a tied embedding have the same.
        global_shape: shape of the whole tensor. It is (2, ffn, hidden) for a SwiGLU input projection, so that
            a tensor-parallel rank's part of both halves is one box.
        offset, shape: the box; its row-major values are the parameter's.
        parameter: the live parameter.
        sharded: whether tensor-parallel ranks hold different boxes of it.
        copy: whether another pipeline stage owns the values (the output side of tied embeddings).
    """

    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    parameter: nn.Parameter
    sharded: bool
    copy: bool


def canonical_name(local: str, layers: Sequence[nn.Module], *, tied: bool) -> str:
    """Canonical name of a parameter that is called `local` inside a `Gpt` holding `layers`."""
    found = _LAYER.match(local)
    if found:
        index = layers[int(found[1])].layer_number - 1  # type: ignore[operator]
        return f"layers.{index}.{_inside_layer(found[2])}"
    if local == "output_layer.weight":
        return "embedding.weight" if tied else "output.weight"
    return local.replace("embedding.word_embeddings.", "embedding.").replace(
        "decoder.final_layernorm.", "final_norm."
    )


def _inside_layer(local: str) -> str:
    """The canonical name within a layer: `mlp.experts.local_experts.3.linear_fc1.weight` becomes
    `mlp.experts.3.fc1.weight`, because every rank has all experts.
    """
    for theirs, ours in (("linear_", ""), ("local_experts.", ""), ("_layernorm.", "_norm.")):
        local = local.replace(theirs, ours)
    return local


def _split_dimension(module: nn.Module) -> int | None:
    """The dimension of a weight that is split over tensor-parallel ranks; None = replicated."""
    if isinstance(module, ColumnParallelLinear | VocabParallelEmbedding):
        return 0
    return 1 if isinstance(module, RowParallelLinear) else None


def parameter_boxes(model: Gpt, shape: ModelShape) -> Iterator[ParameterBox]:
    """The boxes of a model chunk in `named_parameters` order; sets megatron-core's marks on split weights."""
    modules = dict(model.named_modules())
    rank, ranks = model.tp_group.rank(), model.tp_group.size()
    for local, parameter in model.named_parameters():
        owner, _, leaf = local.rpartition(".")
        dimension = _split_dimension(modules[owner]) if leaf == "weight" else None
        local_shape = tuple(parameter.shape)
        if shape.activation == "swiglu" and owner.endswith("linear_fc1"):
            local_shape = (2, local_shape[0] // 2, local_shape[1])
            dimension = 1
        offset, global_shape = [0] * len(local_shape), list(local_shape)
        if dimension is not None:
            offset[dimension] = rank * local_shape[dimension]
            global_shape[dimension] *= ranks
            if not hasattr(parameter, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(
                    parameter, is_parallel=True, dim=min(dimension, parameter.dim() - 1), stride=1
                )
        yield ParameterBox(
            canonical_name(local, model.decoder.layers, tied=shape.tied_embeddings),
            tuple(global_shape),
            tuple(offset),
            local_shape,
            parameter,
            sharded=dimension is not None,
            copy=bool(getattr(parameter, "shared", False)),
        )


def initial_values(
    name: str, global_shape: tuple[int, ...], shape: ModelShape, seed: int, device: torch.device
) -> torch.Tensor:
    """The whole tensor `name` at step 0, fp32: a pure function of its name, the shape and the seed.

    Norms start at 1 and 0, weights from N(0, init_std); the two projections back into the residual stream
    from N(0, init_std / sqrt(2 * num_layers)), as in GPT-2. Rows that pad the vocabulary start at 0.
    """
    if "norm" in name:
        return torch.full(global_shape, 0.0 if name.endswith("bias") else 1.0, device=device)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    residual = name.endswith(("attention.proj.weight", "fc2.weight"))
    std = shape.init_std / math.sqrt(2 * shape.num_layers) if residual else shape.init_std
    values = torch.empty(global_shape, device=device).normal_(0.0, std, generator=generator)
    if name in ("embedding.weight", "output.weight"):
        values[shape.vocab_size :] = 0.0
    return values


@torch.no_grad()
def initialise(boxes: Sequence[ParameterBox], shape: ModelShape, seed: int) -> None:
    """Fill parameters with their part of `initial_values`."""
    for box in boxes:
        whole = initial_values(box.name, box.global_shape, shape, seed, box.parameter.device)
        part = whole[
            tuple(slice(start, start + size) for start, size in zip(box.offset, box.shape, strict=True))
        ]
        box.parameter.copy_(part.reshape(box.parameter.shape))
