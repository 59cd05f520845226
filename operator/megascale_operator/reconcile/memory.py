"""Memory needed for the in-memory snapshots of one node's ranks."""

from __future__ import annotations

from typing import Final

from megascale.job.api import JobSpec
from megascale.model.api import STATE_BYTES, Layout, ModelShape, stage_parameter_count

_MIB: Final = 2**20
_LEAST: Final = 256 * _MIB
_COPIES: Final = 4
"""A rank's own state and its neighbour's, each in two buffers."""
_SLACK: Final = 1.25


def snapshot_mebibytes(spec: JobSpec) -> int | None:
    """Return the MiB that snapshots of one node need when the job runs on the fewest nodes it may shrink to.

    Returns None for a user's own script, whose state size is unknown; its snapshots are bounded only by the
    pod's memory limit.
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
