"""How much memory the snapshots of a node's ranks need."""

from __future__ import annotations

from typing import Final

from megascale.job.api import JobSpec
from megascale.model.api import STATE_BYTES, Layout, ModelShape, stage_parameter_count

_MIB: Final = 2**20
_LEAST: Final = 256 * _MIB
_COPIES: Final = 4
"""Own and neighbour's state, each in two buffers."""
_SLACK: Final = 1.25


def snapshot_mebibytes(spec: JobSpec) -> int | None:
    """MiB for the snapshots of one node at the fewest nodes the job may shrink to; None = not known.

    Nothing is known of a user's own script: its snapshots are bounded by the pod's memory limit alone.
    """
    megatron = spec.runtime.megatron
    if megatron is None or not spec.checkpoint.memory.enabled:
        return None if megatron is None else _LEAST // _MIB
    parallelism = megatron.parallelism
    fewest_ranks = spec.node_counts[-1] * spec.ranks_per_node
    layout = Layout(
        tensor=parallelism.tensor,
        pipeline=parallelism.pipeline,
        data=max(1, fewest_ranks // parallelism.ranks_per_replica),
        interleave=parallelism.interleave,
    )
    shape = ModelShape.of(megatron.model)
    fullest = max(stage_parameter_count(shape, layout, stage) for stage in range(layout.pipeline))
    per_rank = fullest * STATE_BYTES[megatron.optimizer.name] / layout.data
    needed = per_rank * spec.ranks_per_node * _COPIES * _SLACK
    return max(_LEAST, round(needed)) // _MIB + 1
