"""Computes the weights of a model, by canonical name and shape, from its `ModelShape`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from megascale.model.layout import Layout
from megascale.model.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of the whole model.

    Attributes:
        name: canonical name, as in checkpoints.
        shape: its shape, with a padded vocabulary.
        layer: index of its layer; None outside of the layers.
        sharded: whether tensor-parallel ranks hold different parts of it.
        share: fraction of it that one token is multiplied with; below 1 for experts.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None = None
    sharded: bool = False
    share: float = 1.0

    @property
    def size(self) -> int:
        return prod(self.shape)


def weights(shape: ModelShape) -> Iterator[Weight]:
    """Every weight of the model, once."""
    yield Weight("embedding.weight", (shape.padded_vocab_size, shape.hidden_size), sharded=True)
    for layer in range(shape.num_layers):
        yield from _layer_weights(shape, layer)
    yield from _norm(shape, "final_norm", shape.hidden_size, None)
    if not shape.tied_embeddings:
        yield Weight("output.weight", (shape.padded_vocab_size, shape.hidden_size), sharded=True)


def _norm(shape: ModelShape, name: str, width: int, layer: int | None) -> Iterator[Weight]:
    for part in ("weight", "bias") if shape.norm == "layernorm" else ("weight",):
        yield Weight(f"{name}.{part}", (width,), layer)


def _layer_weights(shape: ModelShape, layer: int) -> Iterator[Weight]:
    prefix, hidden = f"layers.{layer}", shape.hidden_size
    fused = hidden + 2 * shape.kv_heads * shape.head_size
    yield from _norm(shape, f"{prefix}.norm", hidden, layer)
    yield Weight(f"{prefix}.attention.proj.weight", (hidden, hidden), layer, sharded=True)
    yield Weight(f"{prefix}.attention.qkv.weight", (fused, hidden), layer, sharded=True)
    if shape.qk_norm:
        for which in ("q", "k"):
            yield from _norm(shape, f"{prefix}.attention.{which}_norm", shape.head_size, layer)
    if shape.experts is None:
        yield from _mlp(shape, f"{prefix}.mlp", layer, 1.0)
    else:
        yield Weight(f"{prefix}.mlp.router.weight", (shape.experts, hidden), layer)
        for expert in range(shape.experts):
            share = shape.experts_per_token / shape.experts
            yield from _mlp(shape, f"{prefix}.mlp.experts.{expert}", layer, share)
    if shape.block == "serial":
        yield from _norm(shape, f"{prefix}.mlp_norm", hidden, layer)


def _mlp(shape: ModelShape, name: str, layer: int, share: float) -> Iterator[Weight]:
    into = (shape.ffn_hidden_size, shape.hidden_size)
    yield Weight(
        f"{name}.fc1.weight",
        (2, *into) if shape.activation == "swiglu" else into,
        layer,
        sharded=True,
        share=share,
    )
    yield Weight(f"{name}.fc2.weight", into[::-1], layer, sharded=True, share=share)


def parameter_count(shape: ModelShape) -> int:
    """Parameters of the whole model, with a padded vocabulary."""
    return sum(weight.size for weight in weights(shape))


def active_parameter_count(shape: ModelShape) -> int:
    """Parameters that one token uses: all but those of experts that it is not routed to."""
    return round(sum(weight.size * weight.share for weight in weights(shape)))


def stage_parameter_count(shape: ModelShape, layout: Layout, stage: int) -> int:
    """Parameters that one rank of a pipeline stage holds, its copy of tied embeddings included.

    A stage holds `interleave` chunks of consecutive layers: chunk c of stage p is layers
    [(c * pipeline + p) * size, ... + size).
    """
    size = shape.num_layers // (layout.pipeline * layout.interleave)
    last = layout.pipeline - 1
    total = 0
    for weight in weights(shape):
        if weight.layer is not None:
            copies = int(weight.layer // size % layout.pipeline == stage)
        elif weight.name == "embedding.weight":
            copies = int(stage == 0 or (stage == last and shape.tied_embeddings))
        else:
            copies = int(stage == last)
        total += copies * weight.size // (layout.tensor if weight.sharded else 1)
    return total
