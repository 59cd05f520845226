"""Floating-point operations of training, which take sliding windows into account."""

from __future__ import annotations

from typing import Literal

from megascale.model.inventory import weights
from megascale.model.shape import ModelShape

Pairs = Literal["attended", "causal", "square"]


def attended_keys(sequence_length: int, window: int | None) -> int:
    """Query-key pairs of one causal sequence: sum over positions i of min(i + 1, window)."""
    span = sequence_length if window is None else min(window, sequence_length)
    return span * (span + 1) // 2 + (sequence_length - span) * span


def matmul_parameters(shape: ModelShape) -> int:
    """Weights that a token is multiplied with: projections, MLP or its experts, router, output layer.

    The embedding, which is looked up, and the padding of the vocabulary do not count.
    """
    inside = sum(w.size * w.share for w in weights(shape) if w.layer is not None and len(w.shape) > 1)
    return round(inside) + shape.vocab_size * shape.hidden_size


def _pairs(shape: ModelShape, sequence_length: int, count: Pairs) -> int:
    """Query-key pairs of one sequence, summed over the layers."""
    if count == "square":
        return shape.num_layers * sequence_length**2
    windows = (shape.window_of(i) if count == "attended" else None for i in range(shape.num_layers))
    return sum(attended_keys(sequence_length, window) for window in windows)


def training_flops(
    shape: ModelShape, sequences: int, sequence_length: int, count: Pairs = "attended"
) -> float:
    """Operations of one step over `sequences` sequences, without recomputation.

        6 * tokens * matmul_parameters + 12 * hidden * sequences * pairs

    A multiply-add counts 2; the backward pass counts twice the forward. Attention needs 2 multiply-adds
    per pair and channel (scores and values). Norms and activations are not counted.

    Args:
        count: which query-key pairs of each layer count: "attended", those inside the causal mask and the
            layer's window; "causal", as if no layer had a window; "square", all sequence_length^2, as in
            Megatron-LM's published figures (Narayanan et al. 2021, appendix).
    """
    tokens = sequences * sequence_length
    pairs = sequences * _pairs(shape, sequence_length, count)
    return 6.0 * tokens * matmul_parameters(shape) + 12.0 * shape.hidden_size * pairs
