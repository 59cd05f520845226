"""Differences between the supported versions of megatron-core, 0.16 to 0.19.

pip installs the newest version that a Python allows: 0.16 on Python 3.11, 0.19 on 3.12 and 3.13. Code that
depends on the version calls this module, and only this module looks at what megatron-core has. Each function
tests for the name that it needs, not for a version number.

    what                                  0.16, 0.17, 0.18               0.19
    gradients that count in the norm      get_main_grads_for_grad_norm   get_grads_for_grad_norm
    warnings from every model it builds   no                             yes

    what                                  0.16, 0.17                     0.18, 0.19
    layers that CUDA graphs capture       cuda_graph_scope               cuda_graph_modules
"""

from __future__ import annotations

import functools
import logging
from dataclasses import fields
from typing import Any, Final

from megatron.core.distributed import distributed_data_parallel
from megatron.core.models.gpt import gpt_model
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


def no_cuda_graphs() -> dict[str, Any]:
    """Options of `TransformerConfig` that leave every layer out of CUDA graphs; the default captures all."""
    names = {field.name for field in fields(TransformerConfig)}
    return {"cuda_graph_modules" if "cuda_graph_modules" in names else "cuda_graph_scope": []}


def norm_gradients(optimizer: DistributedOptimizer) -> list[Tensor]:
    """The gradients that this rank counts in the global norm: each parameter's on one rank only."""
    if hasattr(optimizer, "get_grads_for_grad_norm"):
        gradients: list[Tensor] = optimizer.get_grads_for_grad_norm()
    else:
        gradients = optimizer.get_main_grads_for_grad_norm()
    return gradients


_SILENCED: Final = {
    gpt_model.__name__: "GPTModel IS DEPRECATED",
    distributed_data_parallel.__name__: "DistributedDataParallel: full_param_layout not provided",
}
"""Warnings of 0.19, as logger and beginning of the message; neither changes what a rank does."""


def silence_warnings() -> None:
    """Keep warnings about calls that this package makes out of the ranks' logs; users cannot act on them."""
    for logger, beginning in _SILENCED.items():
        logging.getLogger(logger).addFilter(functools.partial(_is_other, beginning))


def _is_other(beginning: str, record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(beginning)
