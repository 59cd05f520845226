"""Memory of one GPU in training: weights, gradients, optimizer state, activations.

The terms are those of Korthikanti et al. 2023 (Reducing activation recomputation), section 4, for the
blocks of this package: no dropout, attention kernels that keep no score matrix, bf16 activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from megascale.model.inventory import stage_parameter_count
from megascale.model.layout import Layout
from megascale.model.shape import ModelShape

WEIGHT_BYTES: Final = 2
GRADIENT_BYTES: Final = 4
"""Gradients are accumulated and reduced in fp32."""
STATE_BYTES: Final = {"lamb": 12, "adamw": 12, "lion": 8}
"""fp32 master and moments per parameter, split over the data-parallel ranks."""
ACTIVATION_BYTES: Final = 2
_LOGIT_BYTES: Final = 8
"""Per logit: fp32 copy and fp32 log-probabilities, while the last stage computes its loss."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes on one GPU of a pipeline stage.

    Attributes:
        stage: index of the stage.
        parameters: how many this GPU holds.
        weights, gradients, optimizer: bytes for them.
        activations: kept for the backward pass without recomputation, at the fullest moment.
        activations_recomputed: the same with `recompute: full`.
    """

    stage: int
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    activations_recomputed: int

    def total(self, *, recompute: bool) -> int:
        kept = self.activations_recomputed if recompute else self.activations
        return self.weights + self.gradients + self.optimizer + kept


def layer_values(shape: ModelShape, layout: Layout) -> float:
    """Values per token and layer that one rank keeps for the backward pass.

    Input of each norm, input of attention and MLP, queries, keys, values, attention's output, and inside the
    MLP its pre-activation (both halves with SwiGLU, fused) and the input of its second product.
    """
    hidden, tensor = shape.hidden_size, layout.tensor
    along_sequence = tensor if layout.sequence else 1
    norms = 1 if shape.block == "parallel" else 2
    # The parallel block keeps the gathered input; megatron-core's layers gather theirs again.
    inputs = hidden if shape.block == "parallel" else norms * hidden / along_sequence
    attention = (2 * hidden + 2 * shape.kv_heads * shape.head_size) / tensor
    inner = (3 if shape.activation == "swiglu" else 2) * shape.ffn_hidden_size / tensor
    if shape.experts is not None:
        # Each token's copies for its experts, sent in and brought back.
        inner = shape.experts_per_token * (inner + 2 * hidden / along_sequence)
    heads_normed = (hidden + shape.kv_heads * shape.head_size) / tensor if shape.qk_norm else 0
    return norms * hidden / along_sequence + inputs + attention + inner + heads_normed


def layers_in_flight(shape: ModelShape, layout: Layout, stage: int, micro_batches: int) -> float:
    """Layers times micro-batches whose activations a stage holds at its fullest (Narayanan et al. 2021)."""
    chunk = shape.num_layers / (layout.pipeline * layout.interleave)
    ahead = layout.pipeline - 1 - stage
    if layout.interleave == 1:
        chunks = min(ahead + 1, micro_batches)
    else:
        started = 2 * ahead + (layout.interleave - 1) * layout.pipeline + 1
        chunks = min(started, micro_batches * layout.interleave)
    return chunks * chunk


def stage_memory(
    shape: ModelShape,
    layout: Layout,
    stage: int,
    *,
    sequence_length: int,
    micro_batch: int,
    micro_batches: int,
    optimizer: str,
) -> StageMemory:
    """Memory of a GPU of `stage`, with `micro_batches` micro-batches of `micro_batch` sequences a step."""
    tokens = sequence_length * micro_batch
    parameters = stage_parameter_count(shape, layout, stage)
    in_flight = layers_in_flight(shape, layout, stage, micro_batches)
    one_layer = tokens * layer_values(shape, layout) * ACTIVATION_BYTES
    layer_input = tokens * shape.hidden_size * ACTIVATION_BYTES / (layout.tensor if layout.sequence else 1)
    head = 0.0
    if stage == layout.pipeline - 1:
        head = tokens * shape.padded_vocab_size / layout.tensor * _LOGIT_BYTES
    return StageMemory(
        stage=stage,
        parameters=parameters,
        weights=parameters * WEIGHT_BYTES,
        gradients=parameters * GRADIENT_BYTES,
        optimizer=-(-parameters * STATE_BYTES[optimizer] // layout.data),
        activations=round(in_flight * one_layer + head),
        activations_recomputed=round(in_flight * layer_input + one_layer + head),
    )
