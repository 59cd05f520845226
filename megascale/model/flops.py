"""Floating-point operations of training, counting what a sliding window leaves out."""

from __future__ import annotations

from megascale.model.shape import ModelShape


def attended_keys(sequence_length: int, window: int | None) -> int:
    """Query-key pairs of one causal sequence: sum over positions i of min(i + 1, window)."""
    span = sequence_length if window is None else min(window, sequence_length)
    return span * (span + 1) // 2 + (sequence_length - span) * span


def matmul_parameters(shape: ModelShape) -> int:
    """Weights a token is multiplied with: projections, MLP, output layer; the embedding is a look-up."""
    query_and_out = 2 * shape.hidden_size * shape.hidden_size
    key_and_value = 2 * shape.hidden_size * shape.kv_heads * shape.head_size
    mlp = (3 if shape.activation == "swiglu" else 2) * shape.hidden_size * shape.ffn_hidden_size
    return shape.num_layers * (query_and_out + key_and_value + mlp) + shape.vocab_size * shape.hidden_size


def training_flops(shape: ModelShape, sequences: int, sequence_length: int) -> float:
    """Operations of one step over `sequences` sequences, without recomputation.

        6 * tokens * matmul_parameters + 12 * layers * hidden * attended_keys * sequences

    A multiply-add counts 2; the backward pass counts twice the forward. Attention needs 2 multiply-adds
    per pair and channel (scores and values), over the pairs that are really attended: inside the window
    and causal. Norms, activations and the padding of the vocabulary are not counted.
    """
    tokens = sequences * sequence_length
    pairs = sequences * attended_keys(sequence_length, shape.window)
    return 6.0 * tokens * matmul_parameters(shape) + 12.0 * shape.num_layers * shape.hidden_size * pairs
