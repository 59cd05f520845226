from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megascale.model.attention import window_mask, windowed_attention


def brute_force(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """One query and head at a time, over exactly the keys it may see."""
    batch, heads, sequence, size = query.shape
    repeat = heads // key.size(1)
    out = torch.zeros_like(query)
    for b in range(batch):
        for h in range(heads):
            for i in range(sequence):
                first = 0 if window is None else max(0, i - window + 1)
                keys, values = key[b, h // repeat, first : i + 1], value[b, h // repeat, first : i + 1]
                weights = torch.softmax(keys @ query[b, h, i] / math.sqrt(size), dim=0)
                out[b, h, i] = weights @ values
    return out


@settings(max_examples=25, deadline=None)
@given(
    sequence=st.integers(1, 12),
    window=st.none() | st.integers(1, 14),
    kv_heads=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_attention_and_its_gradients_equal_brute_force(
    sequence: int, window: int | None, kv_heads: int, groups: int, seed: int
) -> None:
    torch.manual_seed(seed)
    shapes = [(2, kv_heads * groups, sequence, 4), (2, kv_heads, sequence, 4), (2, kv_heads, sequence, 4)]
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours = windowed_attention(*inputs, window)
    theirs = brute_force(*inputs, window)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_the_window_counts_the_token_itself() -> None:
    mask = window_mask(5, 2, torch.device("cpu"))
    assert mask.sum(dim=1).tolist() == [1, 2, 2, 2, 2]
    assert mask[4].tolist() == [False, False, False, True, True]


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="window is 0"):
        window_mask(4, 0, torch.device("cpu"))
