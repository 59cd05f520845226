"""Compiles layers and loss with torch.compile, which fuses norms, activations and sums (MegaScale 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.distributed import DistributedDataParallel


def compile_chunks(chunks: Sequence[DistributedDataParallel], backend: str = "inductor") -> None:
    """Compile the layers and the loss of `chunks` at their first call, which takes minutes.

    All layers of a kind share one graph. Pipeline messages and the schedule are not compiled.
    """
    for chunk in chunks:
        model = chunk.module
        for layer in model.decoder.layers:
            layer.compile(backend=backend)
        model.compute_language_model_loss = torch.compile(model.compute_language_model_loss, backend=backend)
