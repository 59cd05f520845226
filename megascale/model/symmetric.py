"""Matrix products of tensor-parallel layers that overlap their collectives (MegaScale 3.2, figure 3).

Under sequence parallelism a block's input is gathered from slices and its output is summed into slices. A
rank reads its peers' slices through torch's symmetric memory and multiplies each as soon as it has arrived:

    gather_products    (s / tp, b, h) and weights (out_i, h)    gather(x) W_i^T          (s, b, out_i) each
    scatter_products   (s, b, in_i) and weights (h, in_i)       scatter(sum x_i W_i^T)   (s / tp, b, h)

Several weights share one pass over the links. The backward pass of one is the forward pass of the other.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import torch
from torch import Tensor, distributed

_MEMORY: Final = "torch.distributed._symmetric_memory"
_PIPELINE: Final = "_pipelined_produce_and_all2all"


def unsupported(device: torch.device, peers: list[int]) -> str | None:
    """Why this rank cannot read the memory of the GPUs `peers` of its node; None if it can.

    Not run on a GPU yet.
    """
    if device.type != "cuda":
        return f"needs GPUs, this rank has {device.type}"
    others = [peer for peer in peers if peer != device.index]
    if not all(torch.cuda.can_device_access_peer(device, other) for other in others):
        return f"GPU {device.index} cannot read the memory of all of {others}"
    memory = importlib.import_module(_MEMORY)
    if not hasattr(memory, _PIPELINE):
        return f"torch {torch.__version__} has no {_PIPELINE}"
    try:
        memory.empty(1, device=device)
    except RuntimeError as error:
        return f"no symmetric memory: {error}"
    return None


def _gather(
    shard: Tensor, matrices: list[Tensor], group: distributed.ProcessGroup
) -> tuple[Tensor, list[Tensor]]:
    """(s / tp, b, k) to the gathered (s, b, k) and its products (s, b, n_i) with matrices (k, n_i)."""
    gathered, products = torch.ops.symm_mem.fused_all_gather_matmul(shard, matrices, 0, group.group_name)
    return gathered, products


def _scatter(inputs: list[Tensor], matrices: list[Tensor], group: distributed.ProcessGroup) -> Tensor:
    """This rank's slice (s / tp, b, n) of the sum of products of (s, b, k_i) with (k_i, n) over all ranks.

    torch's fused operation takes one product; its pipeline takes any number, in one pass over the links.
    """
    ranks, rows = group.size(), [x.flatten(0, 1).chunk(group.size()) for x in inputs]
    sequence, batch, width = inputs[0].size(0), inputs[0].size(1), matrices[0].size(1)
    parts = inputs[0].new_empty(sequence * batch, width)

    def produce(rank: int, out: Tensor) -> None:
        torch.mm(rows[0][rank], matrices[0], out=out)
        for values, matrix in zip(rows[1:], matrices[1:], strict=True):
            out.addmm_(values[rank], matrix)

    getattr(importlib.import_module(_MEMORY), _PIPELINE)(produce, parts, group.group_name)
    return parts.view(ranks, sequence // ranks, batch, width).sum(dim=0)


def _weight_gradient(output: Tensor, values: Tensor) -> Tensor:
    """(n, k) from gradients (s, b, n) of products and what was multiplied (s, b, k)."""
    return output.flatten(0, 1).t() @ values.flatten(0, 1)


class _GatherProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        group: distributed.ProcessGroup,
        shard: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        gathered, products = _gather(shard, [weight.t() for weight in weights], group)
        ctx.group = group
        ctx.save_for_backward(gathered, *weights)
        return tuple(products)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
        gathered, *weights = ctx.saved_tensors
        whole = [gradient.contiguous() for gradient in gradients]
        shard = _scatter(whole, weights, ctx.group)
        return None, shard, *(_weight_gradient(gradient, gathered) for gradient in whole)


class _ScatterProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        group: distributed.ProcessGroup,
        *tensors: Tensor,
    ) -> Tensor:
        half = len(tensors) // 2
        inputs, weights = [values.contiguous() for values in tensors[:half]], tensors[half:]
        ctx.group = group
        ctx.save_for_backward(*inputs, *weights)
        return _scatter(inputs, [weight.t() for weight in weights], group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
        half = len(ctx.saved_tensors) // 2
        inputs, weights = ctx.saved_tensors[:half], ctx.saved_tensors[half:]
        whole, products = _gather(gradient.contiguous(), list(weights), ctx.group)
        return None, *products, *(_weight_gradient(whole, values) for values in inputs)


def gather_products(shard: Tensor, weights: list[Tensor], group: distributed.ProcessGroup) -> list[Tensor]:
    """Products (s, b, out_i) of the gathered (s, b, h) with each of `weights`, (out_i, h).

    Args:
        shard: this rank's slice of the sequence, (s / tp, b, h).
        group: the tensor-parallel ranks.
    """
    return list(_GatherProducts.apply(group, shard, *weights))  # type: ignore[no-untyped-call]


def scatter_products(inputs: list[Tensor], weights: list[Tensor], group: distributed.ProcessGroup) -> Tensor:
    """This rank's slice (s / tp, b, h) of the sum of the products of `inputs` and `weights` over all ranks.

    Args:
        inputs: (s, b, in_i) each.
        weights: (h, in_i) each.
        group: the tensor-parallel ranks.
    """
    total: Tensor = _ScatterProducts.apply(group, *inputs, *weights)  # type: ignore[no-untyped-call]
    return total
