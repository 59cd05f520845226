"""The architecture of a GPT: everything that decides its parameters and its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

VOCAB_MULTIPLE: Final = 64
"""The embedding is padded to a multiple of this whatever the layout is, so losses of layouts compare."""


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
        activation: "gelu" or "swiglu".
        rotary_base: base of the rotary position frequencies.
        window: keys a token attends to, itself included; None = all before it.
        tied_embeddings: whether the output layer is the embedding matrix.
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
    activation: Literal["gelu", "swiglu"] = "gelu"
    rotary_base: float = 10000.0
    window: int | None = None
    tied_embeddings: bool = True
    vocab_size: int = 257
    init_std: float = 0.02

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.attention_heads

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
