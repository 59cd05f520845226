"""Cross entropy over a vocabulary that is split over tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """loss = log(sum(exp(logits))) - logits[target], with the sum taken over ranks."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context object
        logits: Tensor,
        target: Tensor,
        first: int,
        group: distributed.ProcessGroup,
    ) -> Tensor:
        """logits (tokens, vocab / ranks) in fp32, target (tokens,); this rank holds ids from `first` on."""
        largest = logits.max(dim=-1).values
        distributed.all_reduce(largest, op=distributed.ReduceOp.MAX, group=group)
        shifted = logits - largest[:, None]
        local = target - first
        here = (local >= 0) & (local < logits.size(1))
        local = local.clamp(0, logits.size(1) - 1)
        picked = shifted.gather(1, local[:, None]).squeeze(1) * here
        exponents = shifted.exp()
        sums = torch.stack([exponents.sum(dim=-1), picked])
        distributed.all_reduce(sums, group=group)
        total, predicted = sums
        ctx.save_for_backward(exponents / total[:, None], local, here)
        loss: Tensor = total.log() - predicted
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        probabilities, local, here = ctx.saved_tensors
        gradient = probabilities.scatter_add(1, local[:, None], -here[:, None].to(probabilities.dtype))
        return gradient * grads[0][:, None], None, None, None


def token_losses(logits: Tensor, labels: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """Cross entropy of every token, in fp32.

    Args:
        logits: (sequence, batch, vocab / ranks), this rank's slice of the vocabulary.
        labels: (batch, sequence) token ids.
        group: the tensor-parallel group.

    Returns:
        (batch, sequence)
    """
    sequence, batch, width = logits.shape
    flat = logits.float().reshape(sequence * batch, width)
    target = labels.t().reshape(-1)
    if group.size() == 1:
        losses = functional.cross_entropy(flat, target, reduction="none")
    else:
        losses = _VocabParallelCrossEntropy.apply(flat, target, group.rank() * width, group)  # type: ignore[no-untyped-call]
    return losses.view(sequence, batch).t()
