"""Causal sliding-window attention as megatron-core's `core_attention` module.

A token at position i attends to positions max(0, i - window + 1) .. i: `window` counts keys, the token
itself included (MegaScale 3.1, sliding window attention). With borders it attends only within its document. A
backend computes it (`megascale.model.kernels` chooses one); the one here is the reference: torch's scaled
dot product attention with an explicit mask, in the dtype of its inputs, on any device.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from megatron.core.transformer.transformer_config import TransformerConfig


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
            window: keys per query, the query's own included; None = all keys up to the query.
            borders: int32 (documents + 1,), offsets at which documents begin in the concatenated rows of the
                batch, from 0 to batch * sequence; every row starts a document. None = each row is one.

        Returns:
            (batch, sequence, heads, head_size)
        """


@functools.lru_cache(maxsize=8)
def window_mask(sequence: int, window: int, device: torch.device) -> Tensor:
    """The mask of a window: bool (sequence, sequence), queries by keys, True = attend.

    Raises:
        ValueError: `window` is less than 1; a token always attends to itself.
    """
    if window < 1:
        raise ValueError(f"window is {window}; it counts the token itself, so at least 1")
    positions = torch.arange(sequence, device=device)
    age = positions[:, None] - positions[None, :]
    return (age >= 0) & (age < window)


def document_mask(borders: Tensor, batch: int, sequence: int) -> Tensor:
    """The mask of documents: bool (batch, 1, sequence, sequence), True = both tokens are in the same one."""
    positions = torch.arange(batch * sequence, device=borders.device, dtype=borders.dtype)
    document = torch.searchsorted(borders, positions, right=True).view(batch, sequence)
    return (document[:, :, None] == document[:, None, :])[:, None]


class Reference:
    """Scaled dot product attention with an explicit mask, or torch's causal kernel if no mask is needed."""

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
    """Calls a backend from megatron-core's interface; it has no parameters."""

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

        megatron-core passes `attention_mask` through all layers unchanged; here it holds the borders.
        """
        q, k, v = (tensor.transpose(0, 1) for tensor in (query, key, value))
        context = self.backend(q, k, v, self.window, attention_mask)  # (b, s, heads, d)
        return context.transpose(0, 1).flatten(2)
