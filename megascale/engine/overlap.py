"""Communication beside compute: what is asked for, what is supported, and why not (MegaScale 3.2)."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from megascale.job.megatron import Overlap as Asked
from megascale.model.layout import Layout


@dataclass(frozen=True, slots=True)
class Feature:
    """One overlap: whether it is on, and why."""

    name: str
    on: bool
    reason: str

    def __str__(self) -> str:
        return f"overlap {self.name}: {'on' if self.on else 'off'} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Overlap:
    """What the engine overlaps.

    Attributes:
        gradient_reduce: reduce-scatter of gradients, bucket by bucket, beside the last backward pass.
        parameter_gather: all-gather of updated parameters beside the next forward pass, the first of them
            beside loading its data.
        pipeline: sends and receives between stages beside compute (interleaved 1F1B).
        bucket_size: parameters per message, None = megatron-core's choice.
        features: all of them with reasons, for the log.
    """

    gradient_reduce: bool
    parameter_gather: bool
    pipeline: bool
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


def _tensor(layout: Layout, *, asked: bool) -> Feature:
    if layout.tensor == 1:
        return Feature("tensor", on=False, reason="one tensor-parallel rank has nothing to send")
    if not asked:
        return Feature("tensor", on=False, reason="switched off")
    if importlib.util.find_spec("transformer_engine") is None:
        return Feature("tensor", on=False, reason="Transformer Engine is not installed")
    return Feature("tensor", on=False, reason="these blocks do not use Transformer Engine's linears")


def decide(asked: Asked, layout: Layout) -> Overlap:
    """What is on under `layout`; a gather can only be overlapped where reduces are (megatron-core's rule)."""
    reduce = _data("gradientReduce", layout, asked=asked.gradient_reduce)
    gather = _data("parameterGather", layout, asked=asked.parameter_gather)
    if gather.on and not reduce.on:
        gather = Feature("parameterGather", on=False, reason="needs gradientReduce")
    pipeline = _pipeline(layout, asked=asked.pipeline)
    return Overlap(
        gradient_reduce=reduce.on,
        parameter_gather=gather.on,
        pipeline=pipeline.on,
        bucket_size=asked.bucket_size,
        features=(reduce, gather, pipeline, _tensor(layout, asked=asked.tensor)),
    )
