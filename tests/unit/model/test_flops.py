from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from megascale.model.flops import attended_keys, matmul_parameters, training_flops
from megascale.model.gpt import Gpt
from megascale.model.shape import ModelShape

SHAPE = ModelShape(num_layers=3, hidden_size=32, attention_heads=4, kv_heads=2, ffn_hidden_size=96)


@given(sequence=st.integers(1, 60), window=st.none() | st.integers(1, 80))
def test_attended_keys_counts_each_pair(sequence: int, window: int | None) -> None:
    pairs = sum(min(i + 1, window or sequence) for i in range(sequence))
    assert attended_keys(sequence, window) == pairs


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_matmuls_are_what_torch_counts(activation: str, build: Callable[[ModelShape, int], Gpt]) -> None:
    """torch's counter knows no attention on the CPU, so what it counts is everything else."""
    sequence, batch = 16, 2
    # A vocabulary without padding, which our count leaves out.
    shape = replace(SHAPE, activation=activation, vocab_size=256)  # type: ignore[arg-type]
    model = build(shape, sequence)
    tokens = torch.zeros(batch, sequence, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(tokens, None, None, labels=tokens).mean().backward()
    attention = 12 * shape.num_layers * shape.hidden_size * batch * attended_keys(sequence, None)
    assert counter.get_total_flops() == training_flops(shape, batch, sequence) - attention


def test_a_window_saves_attention_only() -> None:
    whole, windowed = (training_flops(replace(SHAPE, window=w), 1, 64) for w in (None, 8))
    dense = 6.0 * 64 * matmul_parameters(SHAPE)
    assert whole - dense == 12 * 3 * 32 * 64 * 65 / 2
    assert windowed - dense == 12 * 3 * 32 * (36 + 56 * 8)
