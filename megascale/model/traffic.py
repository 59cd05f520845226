"""Estimates what one GPU sends in one step, by parallel dimension and kind of link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from megascale.model.inventory import stage_parameter_count
from megascale.model.layout import Layout
from megascale.model.memory import ACTIVATION_BYTES, GRADIENT_BYTES, WEIGHT_BYTES
from megascale.model.shape import ModelShape

Link = Literal["node", "network"]
_GATHERS: Final = {
    # (block, sequence parallel): operations per layer and micro-batch, forward and backward together, that
    # move (ranks - 1) / ranks of a full activation; an all-reduce counts as two.
    ("parallel", False): 4,
    ("parallel", True): 4,
    ("serial", False): 8,
    # megatron-core gathers the inputs of its two column-parallel products again in the backward pass.
    ("serial", True): 10,
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """Messages of one GPU in a step along one dimension.

    Attributes:
        dimension: "tensor", "data" or "pipeline".
        what: the messages.
        link: "node" if all ranks of the dimension are in one node, else "network".
        bytes: sent per GPU and step.
    """

    dimension: str
    what: str
    link: Link
    bytes: int


def _link(stride: int, size: int, gpus_per_node: int) -> Link:
    """The link between `size` ranks that are `stride` apart."""
    return "node" if stride * size <= gpus_per_node else "network"


def _passes(shape: ModelShape, layout: Layout) -> float:
    """How often a layer moves (ranks - 1) / ranks of an activation, in both passes together."""
    passes = _GATHERS[shape.block, layout.sequence]
    if shape.experts is None:
        return passes
    # Attention keeps its own share of the passes. Tokens are gathered for their experts and scattered back,
    # in both directions and once for each expert.
    attention = passes if shape.block == "parallel" else passes / 2
    return attention + 4 * shape.experts_per_token


def traffic(
    shape: ModelShape,
    layout: Layout,
    *,
    sequence_length: int,
    micro_batch: int,
    micro_batches: int,
    gpus_per_node: int,
) -> list[Traffic]:
    """Bytes a GPU of the first pipeline stage sends per step, ring algorithms, bf16 activations.

    The few values per token of the loss and the norms, control messages and checkpoints do not count. Experts
    are split over the tensor ranks and are assumed to get equally many tokens.
    """
    tokens = sequence_length * micro_batch
    activation = tokens * shape.hidden_size * ACTIVATION_BYTES
    found = []
    if layout.tensor > 1:
        moved = (layout.tensor - 1) / layout.tensor * activation
        layers = shape.num_layers // layout.pipeline
        per_micro_batch = layers * _passes(shape, layout) + 2  # the embedding's output
        count = round(per_micro_batch * moved * micro_batches)
        link = _link(1, layout.tensor, gpus_per_node)
        found.append(Traffic("tensor", "activations and their gradients between layers", link, count))
    if layout.data > 1:
        part = (layout.data - 1) / layout.data * stage_parameter_count(shape, layout, 0)
        link = _link(layout.tensor, layout.data, gpus_per_node)
        found.append(Traffic("data", "gradients, reduce-scatter in fp32", link, round(part * GRADIENT_BYTES)))
        found.append(Traffic("data", "parameters, all-gather in bf16", link, round(part * WEIGHT_BYTES)))
    if layout.pipeline > 1:
        message = activation // (layout.tensor if layout.sequence else 1)
        link = _link(layout.tensor * layout.data, layout.pipeline, gpus_per_node)
        # It sends the output of every chunk, and the gradient of the input of every chunk but the first.
        messages = (2 * layout.interleave - 1) * micro_batches
        found.append(Traffic("pipeline", "activations and their gradients", link, messages * message))
        if shape.tied_embeddings:
            size = shape.padded_vocab_size * shape.hidden_size // layout.tensor * GRADIENT_BYTES
            found.append(Traffic("pipeline", "gradient of tied embeddings, all-reduce in fp32", link, size))
    return found


def bubble(layout: Layout, micro_batches: int) -> float:
    """Idle time of the pipeline over its working time: (p - 1) / (v m) (MegaScale 3.1)."""
    return (layout.pipeline - 1) / (layout.interleave * micro_batches)
