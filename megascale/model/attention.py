"""The attention seam: causal sliding-window attention as megatron-core's `core_attention` module.

A token at position i attends to positions max(0, i - window + 1) .. i: `window` counts keys, the token
itself included (MegaScale 3.1, sliding window attention). With borders it stays within its document too.
Who computes it is a backend (`megascale.model.kernels`); the one here is the reference: torch's scaled dot
product attention with an explicit mask, in the dtype of its inputs, on any device.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional


class Backend(Protocol):
    """Computes attention.

    Attributes:
        name: "flash", "varlen" or "reference".
    """

    name: str

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, borders: Tensor | None
    ) -> Tensor:
        """Causal attention within a window and within documents.

        Args:
            query: (batch, sequence, heads, head_size), any strides.
            key, value: (batch, sequence, kv_heads, head_size); kv_heads divides heads.
            window: keys per query, itself included; None = every key up to the query.
            borders: int32 (documents + 1,), where documents begin in the batch's rows laid end to end, from 0
                to batch * sequence, each row's start among them; None = every row is one document.

        Returns:
            (batch, sequence, heads, head_size)
        """


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


def document_mask(borders: Tensor, batch: int, sequence: int) -> Tensor:
    """Which tokens of a row are in the same document: bool (batch, 1, sequence, sequence)."""
    positions = torch.arange(batch * sequence, device=borders.device, dtype=borders.dtype)
    document = torch.searchsorted(borders, positions, right=True).view(batch, sequence)
    return (document[:, :, None] == document[:, None, :])[:, None]


class Reference:
    """Scaled dot product attention with an explicit mask, or torch's causal kernel where there is none."""

    name = "reference"

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, borders: Tensor | None
    ) -> Tensor:
        batch, sequence, heads, _ = query.shape
        q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
        grouped = key.size(2) != heads
        mask: Tensor | None = None
        if borders is not None:
            inside = window_mask(sequence, window or sequence, query.device)
            mask = inside & document_mask(borders, batch, sequence)
        elif window is not None and window < sequence:
            mask = window_mask(sequence, window, query.device)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped
        )
        return out.transpose(1, 2)


class WindowedAttention(nn.Module):
    """A backend behind megatron-core's calling convention; it has no parameters."""

    def __init__(
        self,
        *,
        config: TransformerConfig,
        window: int | None,
        backend: Backend,
        **_placement: Any,  # noqa: ANN401 - layer number, mask type and groups, which it does not need
    ) -> None:
        super().__init__()
        if config.context_parallel_size > 1:
            raise ValueError("sliding-window attention is not split over context-parallel ranks")
        self.window = window
        self.backend = backend

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **_unused: Any,  # noqa: ANN401 - mask type, bias and packing of other backends
    ) -> Tensor:
        """Map query (s, b, heads, d) and key, value (s, b, kv_heads, d) to (s, b, heads * d).

        megatron-core hands `attention_mask` through all layers untouched; here it is the borders.
        """
        q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
        context = self.backend(q, k, v, self.window, attention_mask)  # (b, s, heads, d)
        return context.transpose(0, 1).flatten(2)
