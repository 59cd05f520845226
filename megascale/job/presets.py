"""Model shapes by name: values for the fields of `spec.runtime.megatron.model` that a file leaves out.

Sources: gpt-175b and gpt-530b are table 2 of the MegaScale paper (NSDI'24; sequences of 2048 tokens), llama-*
are table 2 of LLaMA (arXiv 2302.13971), dbrx is the configuration published with the DBRX weights (132e9
parameters of which a token uses 36e9). The tiny ones are for tests and demonstrations on a CPU.
"""

from __future__ import annotations

from typing import Final, TypeAlias

_Value: TypeAlias = int | float | str | bool

_GPT: Final[dict[str, _Value]] = {"vocab_size": 64_000}
_LLAMA: Final[dict[str, _Value]] = {
    "block": "serial",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "tied_embeddings": False,
    "vocab_size": 32_000,
}


def _shape(layers: int, hidden: int, heads: int) -> dict[str, _Value]:
    return {"num_layers": layers, "hidden_size": hidden, "attention_heads": heads}


PRESETS: Final[dict[str, dict[str, _Value]]] = {
    "tiny": _shape(4, 128, 4) | {"window": 64},
    "tiny-moe": _shape(2, 64, 4) | {"experts": 4, "experts_per_token": 2},
    "gpt-175b": _GPT | _shape(96, 12_288, 128),
    "gpt-530b": _GPT | _shape(105, 20_480, 160),
    "llama-7b": _LLAMA | _shape(32, 4096, 32) | {"ffn_hidden_size": 11_008},
    "llama-13b": _LLAMA | _shape(40, 5120, 40) | {"ffn_hidden_size": 13_824},
    "llama-65b": _LLAMA | _shape(80, 8192, 64) | {"ffn_hidden_size": 22_016},
    "dbrx": _LLAMA
    | _shape(40, 6144, 48)
    | {
        "norm": "layernorm",
        "kv_heads": 8,
        "ffn_hidden_size": 10_752,
        "experts": 16,
        "experts_per_token": 4,
        "rotary_base": 500_000.0,
        "vocab_size": 100_352,
    },
}
