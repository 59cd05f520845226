"""The architecture of a GPT: everything that determines its parameters and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Self

from megascale.job.megatron import VOCAB_MULTIPLE, Model


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes and choices of one model.

    Attributes:
        num_layers: transformer blocks.
        hidden_size: width of the residual stream.
        attention_heads: query heads; kv_heads: key and value heads, dividing `attention_heads`.
        ffn_hidden_size: width inside the MLP (of each of its two halves with SwiGLU).
        block: "parallel" y = x + Attn(LN(x)) + MLP(LN(x)) with one shared norm (MegaScale 3.1), or
            "serial" x' = x + Attn(LN(x)); y = x' + MLP(LN(x')).
        norm: "layernorm" or "rmsnorm".
        qk_norm: whether each head's queries and keys are normalised, the stabiliser that ViT-22B gives
            parallel blocks (Dehghani et al. 2023).
        activation: "gelu" or "swiglu".
        rotary_base: base of the rotary position frequencies.
        window: keys that a token attends to, its own included; None = all up to it.
        window_pattern: repeated over the layers: S = layer with the window, L = layer without.
        tied_embeddings: whether the output layer is the embedding matrix.
        experts: MLPs per layer that a router chooses from; None = one MLP without a router.
        experts_per_token: experts that each token is routed to.
        vocab_size: number of tokens, before padding.
        init_std: standard deviation of initial weights.
    """

    num_layers: int
    hidden_size: int
    attention_heads: int
    kv_heads: int
    ffn_hidden_size: int
    block: Literal["parallel", "serial"] = "parallel"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    qk_norm: bool = False
    activation: Literal["gelu", "swiglu"] = "gelu"
    rotary_base: float = 10000.0
    window: int | None = None
    window_pattern: str = "S"
    tied_embeddings: bool = True
    experts: int | None = None
    experts_per_token: int = 1
    vocab_size: int = 257
    init_std: float = 0.02

    @classmethod
    def of(cls, model: Model) -> Self:
        """The architecture that a manifest's model section describes."""
        return cls(**{field.name: getattr(model, field.name) for field in fields(cls)})

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.attention_heads

    @staticmethod
    def padded(vocab_size: int) -> int:
        """`vocab_size`, rounded up to a multiple of `VOCAB_MULTIPLE`."""
        return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def padded_vocab_size(self) -> int:
        return self.padded(self.vocab_size)

    def window_of(self, layer: int) -> int | None:
        """The window of a layer, counted from 0 over the whole model; None = all keys before a token."""
        return self.window if self.window_pattern[layer % len(self.window_pattern)] == "S" else None
