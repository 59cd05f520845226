"""Decides which communication overlaps compute: requested, supported, and why not (MegaScale 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import distributed

from megascale.engine.groups import Groups
from megascale.job.megatron import Overlap as Asked
from megascale.model.layout import Layout
from megascale.model.symmetric import unsupported


@dataclass(frozen=True, slots=True)
class Feature:
    """One kind of overlap, whether it is on, and why."""

    name: str
    on: bool
    reason: str

    def __str__(self) -> str:
        return f"overlap {self.name}: {'on' if self.on else 'off'} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlaps of a job.

    Attributes:
        gradient_reduce: reduce-scatter of gradients, bucket by bucket, during the last backward pass.
        parameter_gather: all-gather of updated parameters during the next forward pass, the first of them
            while its data is loaded.
        pipeline: sends and receives between stages during compute (interleaved 1F1B).
        tensor: the parallel block's gathers and scatters within the matrix products around them.
        bucket_size: parameters per message; None = megatron-core's default.
        features: all of them with reasons, for the log.
    """

    gradient_reduce: bool
    parameter_gather: bool
    pipeline: bool
    tensor: bool
    bucket_size: int | None
    features: tuple[Feature, ...]


def _data(name: str, layout: Layout, *, asked: bool) -> Feature:
    if layout.data == 1:
        return Feature(name, on=False, reason="one data-parallel rank has nothing to send")
    return Feature(name, on=asked, reason="supported" if asked else "switched off")


def _pipeline(layout: Layout, *, asked: bool) -> Feature:
    if layout.pipeline == 1:
        return Feature("pipeline", on=False, reason="one stage has nothing to send")
    if layout.interleave == 1:
        return Feature("pipeline", on=False, reason="needs interleave 2 or more: 1F1B waits for each message")
    return Feature("pipeline", on=asked, reason="supported" if asked else "switched off")


def _tensor(layout: Layout, block: str, obstacle: str | None, *, asked: bool) -> Feature:
    missing = {
        "one tensor-parallel rank has nothing to send": layout.tensor == 1,
        "needs sequence parallelism: sums over ranks cannot be cut": not layout.sequence,
        "needs the parallel block": block != "parallel",
        "switched off": not asked,
    }
    for reason, holds in missing.items():
        if holds:
            return Feature("tensor", on=False, reason=reason)
    return Feature("tensor", on=obstacle is None, reason=obstacle or "supported")


def tensor_obstacle(groups: Groups, device: torch.device, ranks_per_node: int) -> str | None:
    """Why tensor-parallel ranks cannot read each other's memory; collective. None if they can.

    Args:
        ranks_per_node: ranks on this node; local rank i uses GPU i.
    """
    group, size = groups.collection.tp, groups.layout.tensor
    if size == 1:
        return None
    first = (device.index or 0) - groups.coordinates.tensor
    inside = first >= 0 and first + size <= ranks_per_node
    own = unsupported(device, list(range(first, first + size)) if inside else [])
    if own is None and not inside:
        own = "tensor-parallel ranks are on several nodes"
    lacking = torch.tensor(float(own is not None), device=device)
    distributed.all_reduce(lacking, group=group)
    return own or ("another tensor-parallel rank cannot" if lacking.item() else None)


def decide(
    asked: Asked,
    layout: Layout,
    *,
    block: Literal["parallel", "serial"] = "parallel",
    obstacle: str | None = None,
) -> Overlap:
    """Decide the overlaps under `layout`. megatron-core overlaps gathers only if it overlaps reductions.

    `obstacle` comes from `tensor_obstacle`.
    """
    reduce = _data("gradientReduce", layout, asked=asked.gradient_reduce)
    gather = _data("parameterGather", layout, asked=asked.parameter_gather)
    if gather.on and not reduce.on:
        gather = Feature("parameterGather", on=False, reason="needs gradientReduce")
    pipeline = _pipeline(layout, asked=asked.pipeline)
    tensor = _tensor(layout, block, obstacle, asked=asked.tensor)
    return Overlap(
        gradient_reduce=reduce.on,
        parameter_gather=gather.on,
        pipeline=pipeline.on,
        tensor=tensor.on,
        bucket_size=asked.bucket_size,
        features=(reduce, gather, pipeline, tensor),
    )
