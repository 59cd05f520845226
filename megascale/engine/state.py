"""The trained state of a rank: its model chunks, their parameters by name, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer_config import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megascale.engine.groups import Groups
from megascale.engine.overlap import Overlap, decide
from megascale.job.megatron import Optimizer
from megascale.job.megatron import Overlap as Asked
from megascale.model.attention import Backend
from megascale.model.gpt import Gpt, Recompute, transformer_config
from megascale.model.parameters import ParameterBox, initialise, parameter_boxes
from megascale.model.shape import ModelShape
from megascale.optim.adamw import AdamW
from megascale.optim.lamb import Lamb, Range
from megascale.optim.lion import Lion

_OPTIMIZERS: Final[dict[str, type[AdamW]]] = {"lamb": Lamb, "adamw": AdamW, "lion": Lion}


@dataclass(slots=True)
class EngineState:
    """Everything that training changes on a rank.

    Attributes:
        shape, config: the model, and its configuration for megatron-core.
        groups: the rank's process groups and coordinates.
        chunks: model chunks wrapped in distributed data parallel, in the order of the virtual stages.
        boxes: the rank's parameters as boxes of the whole model's tensors, in megatron-core's order.
        optimizer: megatron-core's distributed optimizer, which owns the fp32 masters of this rank's ranges.
        inner: the optimizer that it wraps, which owns the moments and the number of updates.
        step: last completed step of the job.
    """

    shape: ModelShape
    config: TransformerConfig
    groups: Groups
    device: torch.device
    chunks: list[DistributedDataParallel]
    boxes: list[ParameterBox]
    optimizer: DistributedOptimizer
    inner: AdamW
    step: int = 0

    def masters(self) -> list[tuple[nn.Parameter, Tensor, int, int]]:
        """This rank's fp32 master values: (parameter, master, start, end).

        A master holds the flat range [start, end) of the parameter and is the key of its moments in
        `inner.state`.
        """
        ranges = []
        for models, shards in (
            (self.optimizer.model_float16_groups, self.optimizer.shard_fp32_from_float16_groups),
            (self.optimizer.model_fp32_groups, self.optimizer.shard_fp32_groups),
        ):
            for model_group, shard_group in zip(models, shards, strict=True):
                for parameter, master in zip(model_group, shard_group, strict=True):
                    span = self.optimizer._get_model_param_range_map(parameter)["param"]  # noqa: SLF001
                    ranges.append((parameter, master, span.start, span.end))
        return ranges

    def publish_masters(self) -> None:
        """Copy the masters into the model's parameters on all ranks, after the masters were overwritten."""
        self.optimizer._copy_main_params_to_model_params()  # noqa: SLF001 - part of its step, no public name
        for chunk in self.chunks:
            chunk.start_param_sync(force_sync=True)

    def prefetch_parameters(self) -> None:
        """Start the all-gather of the parameters that the next forward pass needs first."""
        group = self.chunks[0].bucket_groups[-1]
        if group.ddp_config.overlap_param_gather and not group.param_gather_dispatched:
            group.start_param_sync()

    def finish_gathering(self) -> None:
        """Wait for gathers that `prefetch_parameters` started."""
        for chunk in self.chunks:
            for group in chunk.bucket_groups:
                if group.param_gather_handle is not None:
                    group.param_gather_handle.wait()
                    group.param_gather_handle = None


def _build_chunks(
    shape: ModelShape,
    config: TransformerConfig,
    sequence_length: int,
    groups: Groups,
    backend: Backend | None,
    *,
    overlap_tensor: bool,
) -> list[Gpt]:
    layout, own = groups.layout, groups.coordinates
    last_stage = layout.pipeline - 1
    return [
        Gpt(
            config,
            shape,
            sequence_length,
            groups.collection,
            first=own.pipeline == 0 and chunk == 0,
            last=own.pipeline == last_stage and chunk == layout.interleave - 1,
            chunk=chunk if layout.interleave > 1 else None,
            backend=backend,
            overlap_tensor=overlap_tensor,
        )
        for chunk in range(layout.interleave)
    ]


def _gather_once(chunk: DistributedDataParallel) -> Callable[..., None]:
    """A function that starts the all-gathers of a chunk that are not under way yet."""

    def gather(*_parameters: object) -> None:
        for group in chunk.bucket_groups:
            if not group.param_gather_dispatched:
                group.start_param_sync()

    return gather


def _wrap_chunks(
    chunks: Sequence[Gpt], config: TransformerConfig, groups: Groups, overlap: Overlap
) -> list[DistributedDataParallel]:
    ddp_config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap.gradient_reduce,
        overlap_param_gather=overlap.parameter_gather,
        # With several chunks the schedule starts each chunk's gather before its forward pass.
        align_param_gather=overlap.parameter_gather and len(chunks) > 1,
        bucket_size=overlap.bucket_size,
        use_distributed_optimizer=True,
    )
    wrapped = [
        # Gradients of later chunks are reduced while earlier chunks compute: one bucket each is enough.
        DistributedDataParallel(
            config, ddp_config, chunk, disable_bucketing=index > 0, pg_collection=groups.collection
        )
        for index, chunk in enumerate(chunks)
    ]
    if overlap.gradient_reduce:
        no_sync = [chunk.no_sync for chunk in wrapped]
        start = [chunk.start_grad_sync for chunk in wrapped]
        config.no_sync_func = no_sync if len(wrapped) > 1 else no_sync[0]
        if len(wrapped) > 1:
            config.grad_sync_func = start
    if overlap.parameter_gather and len(wrapped) > 1:
        config.param_sync_func = [_gather_once(chunk) for chunk in wrapped]
    config.finalize_model_grads_func = finalize_model_grads
    return wrapped


def _inner_optimizer(parameters: Sequence[nn.Parameter], settings: Optimizer) -> AdamW:
    """The optimizer over whole parameters; norms, of one dimension, have no weight decay or trust ratio."""
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    norms = [parameter for parameter in parameters if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": norms, "weight_decay": 0.0, "trust_ratio": False},
    ]
    return _OPTIMIZERS[settings.name](
        groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.eps
    )


def _distribute(
    inner: AdamW, chunks: list[DistributedDataParallel], config: TransformerConfig, groups: Groups
) -> DistributedOptimizer:
    optimizer = DistributedOptimizer(
        inner,
        OptimizerConfig(
            bf16=config.bf16, params_dtype=config.params_dtype, use_distributed_optimizer=True, clip_grad=0.0
        ),
        None,
        lambda *_: None,
        model_chunks=chunks,
        per_model_buffers={index: chunk.buffers for index, chunk in enumerate(chunks)},
        data_parallel_group=groups.collection.dp_cp,
        data_parallel_group_gloo=None,
        data_parallel_group_idx=groups.coordinates.pipeline * groups.layout.tensor
        + groups.coordinates.tensor,
        distributed_optimizer_instance_id=0,
    )
    optimizer.grad_stats_parallel_group = groups.world
    optimizer.tp_group = groups.collection.tp
    return optimizer


def build_engine(
    shape: ModelShape,
    settings: Optimizer,
    groups: Groups,
    *,
    sequence_length: int,
    device: torch.device,
    dtype: torch.dtype,
    seed: int | None,
    recompute: Recompute = "none",
    backend: Backend | None = None,
    overlap: Overlap | None = None,
) -> EngineState:
    """Build this rank's part of the model and its optimizer; collective over all ranks.

    Args:
        seed: seed of the initial values; None = undefined values, to be overwritten by a checkpoint.
        recompute: activations that the backward pass computes again.
        backend: attention backend; None = the reference.
        overlap: communication that overlaps compute. None = everything but parameter gathers, so that all
            ranks hold the same parameters after each step and not only from the next forward pass on.
    """
    overlap = overlap or decide(Asked(parameter_gather=False), groups.layout)
    config = transformer_config(
        shape,
        groups.layout,
        dtype=dtype,
        on_cpu=device.type == "cpu",
        recompute=recompute,
        overlap_pipeline=overlap.pipeline,
    )
    models = _build_chunks(shape, config, sequence_length, groups, backend, overlap_tensor=overlap.tensor)
    boxes = [box for model in models for box in parameter_boxes(model, shape)]
    if seed is not None:
        initialise(boxes, shape, seed)
    chunks = _wrap_chunks(models, config, groups, overlap)
    inner = _inner_optimizer([box.parameter for box in boxes], settings)
    optimizer = _distribute(inner, chunks, config, groups)
    inner.allocate_state()
    state = EngineState(shape, config, groups, device, chunks, boxes, optimizer, inner)
    if isinstance(inner, Lamb):
        index = {box.parameter: position for position, box in enumerate(boxes)}
        sharded = {box.parameter: box.sharded for box in boxes}
        ranges = {
            master: Range(index[parameter], counted=sharded[parameter] or groups.coordinates.tensor == 0)
            for parameter, master, _, _ in state.masters()
        }
        inner.set_ranges(ranges, len(boxes), groups.stage, device)
    return state
