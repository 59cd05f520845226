"""The attention seam: causal sliding-window attention as megatron-core's `core_attention` module.

A token at position i attends to positions max(0, i - window + 1) .. i: `window` counts keys, the token
itself included (MegaScale 3.1, sliding window attention). This is the reference backend: torch's scaled
dot product attention with an explicit mask, in the dtype of its inputs, on any device.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional


@functools.lru_cache(maxsize=8)
def window_mask(sequence: int, window: int, device: torch.device) -> Tensor:
    """Which keys (columns) each query (row) sees: bool (sequence, sequence), True = attend.

    Raises:
        ValueError: `window` is less than 1 (a token always sees itself).
    """
    if window < 1:
        raise ValueError(f"window is {window}; it counts the token itself, so at least 1")
    positions = torch.arange(sequence, device=device)
    age = positions[:, None] - positions[None, :]
    return (age >= 0) & (age < window)


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """Causal attention within a window.

    Args:
        query: (batch, heads, sequence, head_size).
        key, value: (batch, kv_heads, sequence, head_size); kv_heads divides heads.
        window: keys per query, itself included; None = every key up to the query.

    Returns:
        (batch, heads, sequence, head_size)
    """
    grouped = key.size(1) != query.size(1)
    sequence = query.size(2)
    if window is None or window >= sequence:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    mask = window_mask(sequence, window, query.device)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)


class WindowedAttention(nn.Module):
    """`windowed_attention` behind megatron-core's calling convention; it has no parameters."""

    def __init__(
        self,
        *,
        config: TransformerConfig,
        window: int | None,
        **_placement: Any,  # noqa: ANN401 - layer number, mask type and groups, which it does not need
    ) -> None:
        super().__init__()
        if config.context_parallel_size > 1:
            raise ValueError("sliding-window attention is not split over context-parallel ranks")
        self.window = window

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **_unused: Any,  # noqa: ANN401 - mask type, bias and packing of other backends
    ) -> Tensor:
        """Map query (s, b, heads, d) and key, value (s, b, kv_heads, d) to (s, b, heads * d)."""
        if attention_mask is not None:
            raise ValueError("the window makes the mask; attention_mask must be None")
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        context = windowed_attention(q, k, v, self.window)  # (b, heads, s, d)
        return context.permute(2, 0, 1, 3).flatten(2)
