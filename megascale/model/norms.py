"""LayerNorm and RMSNorm for megatron-core's module specs.

megatron-core refuses torch's own norms under sequence parallelism: each tensor-parallel rank normalises
another slice of the sequence, so the gradients of the norm's parameters must be summed over these ranks.
megatron-core does that for parameters marked `sequence_parallel`, as they are here. Inputs that are views
(the keys of a head within the fused projection) are copied, so that the backward pass keeps only the copy.
"""

from __future__ import annotations

from typing import Literal

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional


class _Norm(nn.Module):
    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.hidden_size = hidden_size
        self.weight = self._parameter(config, 1.0)

    def _parameter(self, config: TransformerConfig, value: float) -> nn.Parameter:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        parameter = nn.Parameter(
            torch.full((self.hidden_size,), value, dtype=config.params_dtype, device=device)
        )
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return parameter


class LayerNorm(_Norm):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al. 2016)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(config, hidden_size, eps)
        self.bias = self._parameter(config, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x.contiguous(), (self.hidden_size,), self.weight, self.bias, self.eps)


class RMSNorm(_Norm):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__(config, hidden_size, eps)

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.contiguous(), (self.hidden_size,), self.weight, self.eps)


NORMS: dict[Literal["layernorm", "rmsnorm"], type[LayerNorm] | type[RMSNorm]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
}
