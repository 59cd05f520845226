"""Estimates the cost of a model under a layout; all figures are computed, none measured."""

from __future__ import annotations

from typing import Any, Final

from megascale.model.flops import Pairs, training_flops
from megascale.model.inventory import active_parameter_count, parameter_count
from megascale.model.layout import Layout
from megascale.model.memory import stage_memory
from megascale.model.shape import ModelShape
from megascale.model.traffic import bubble, traffic

_COUNTS: Final[dict[str, Pairs]] = {"windowAware": "attended", "causal": "causal", "square": "square"}


def describe(
    shape: ModelShape,
    layout: Layout,
    *,
    sequence_length: int,
    micro_batch: int,
    global_batch: int,
    optimizer: str,
    gpus_per_node: int,
) -> dict[str, Any]:
    """Sizes, memory, arithmetic and communication of `shape` under `layout`, as JSON values.

    Memory and traffic are in bytes, arithmetic in FLOPs per step. The pipeline bubble is idle time over
    working time, and over the time of the step.
    """
    micro_batches = global_batch // (micro_batch * layout.data)
    batch: dict[str, Any] = {
        "sequence_length": sequence_length,
        "micro_batch": micro_batch,
        "micro_batches": micro_batches,
    }
    stages = [
        stage_memory(shape, layout, stage, optimizer=optimizer, **batch) for stage in range(layout.pipeline)
    ]
    fullest = max(stages, key=lambda memory: memory.total(recompute=False))
    idle = bubble(layout, micro_batches)
    sent = traffic(shape, layout, gpus_per_node=gpus_per_node, **batch)
    return {
        "parameters": parameter_count(shape),
        "activeParameters": active_parameter_count(shape),
        "gpus": layout.world_size,
        "tokensPerStep": global_batch * sequence_length,
        "microBatches": micro_batches,
        "memoryPerGpu": {
            "stage": fullest.stage,
            "parameters": fullest.parameters,
            "weights": fullest.weights,
            "gradients": fullest.gradients,
            "optimizer": fullest.optimizer,
            "activations": fullest.activations,
            "activationsRecomputed": fullest.activations_recomputed,
            "total": fullest.total(recompute=False),
            "totalRecomputed": max(memory.total(recompute=True) for memory in stages),
        },
        "flopsPerStep": {
            name: training_flops(shape, global_batch, sequence_length, count)
            for name, count in _COUNTS.items()
        },
        "pipelineBubble": {"idleOverWork": idle, "idleOverStep": idle / (1 + idle)},
        "communication": [
            {"dimension": item.dimension, "what": item.what, "link": item.link, "bytesPerStep": item.bytes}
            for item in sent
        ],
        "bytesPerLink": {
            link: sum(item.bytes for item in sent if item.link == link) for link in ("node", "network")
        },
    }
