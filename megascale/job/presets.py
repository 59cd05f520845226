"""Model shapes by name: values for the fields of `spec.runtime.megatron.model` that a file leaves out.

Sources: gpt-175b and gpt-530b are table 2 of the MegaScale paper (NSDI'24; sequences of 2048 tokens), llama-*
are table 2 of LLaMA (arXiv 2302.13971).
"""

from __future__ import annotations

from typing import Final

_GPT: Final[dict[str, int | str | bool]] = {"vocab_size": 64_000}
_LLAMA: Final[dict[str, int | str | bool]] = {
    "block": "serial",
    "norm": "rmsnorm",
    "activation": "swiglu",
    "tied_embeddings": False,
    "vocab_size": 32_000,
}


def _shape(layers: int, hidden: int, heads: int) -> dict[str, int | str | bool]:
    return {"num_layers": layers, "hidden_size": hidden, "attention_heads": heads}


PRESETS: Final[dict[str, dict[str, int | str | bool]]] = {
    "tiny": _shape(4, 128, 4) | {"window": 64},
    "gpt-175b": _GPT | _shape(96, 12_288, 128),
    "gpt-530b": _GPT | _shape(105, 20_480, 160),
    "llama-7b": _LLAMA | _shape(32, 4096, 32) | {"ffn_hidden_size": 11_008},
    "llama-13b": _LLAMA | _shape(40, 5120, 40) | {"ffn_hidden_size": 13_824},
    "llama-65b": _LLAMA | _shape(80, 8192, 64) | {"ffn_hidden_size": 22_016},
}
