"""A mixture of experts, built of megatron-core's layers: a router and one MLP per expert."""

from __future__ import annotations

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional


class Router(TopKRouter):  # type: ignore[misc] # megatron-core is untyped
    """megatron-core's router; its own product of weights and tokens needs Transformer Engine."""

    def gating(self, input: Tensor) -> Tensor:  # noqa: A002 - megatron-core's name
        """Scores (s, b, experts) in fp32 of hidden states (s, b, h)."""
        return functional.linear(input.float(), self.weight.float())


def mixture(config: TransformerConfig, layer_number: int, groups: ProcessGroupCollection) -> MoELayer:
    """The experts of one layer with their router; maps (s, b, h) to ((s, b, h), None)."""
    linears = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    experts = ModuleSpec(module=SequentialMLP, submodules=linears)
    layer = MoELayer(config, MoESubmodules(experts=experts, router=Router), layer_number, groups)
    layer.set_layer_number(layer_number)
    if not config.use_cpu_initialization:
        # megatron-core moves it in the first forward pass; the optimizer takes parameters before that.
        layer.router.weight.data = layer.router.weight.data.to(torch.cuda.current_device())
    return layer
