"""From the manifest to what the core decides by."""

from __future__ import annotations

from megascale.core.policy import Policy
from megascale.job import TrainingJob

_SPARES_ON_ONE_MACHINE = 1


def policy_of(job: TrainingJob) -> Policy:
    """The core's view of a manifest."""
    spec = job.spec
    spares = spec.spare_nodes if isinstance(spec.spare_nodes, int) else _SPARES_ON_ONE_MACHINE
    return Policy(
        nodes=spec.nodes,
        spare_nodes=spares,
        spares_after_launch=True,
        min_nodes=spec.min_nodes,
        ranks_per_node=spec.ranks_per_node,
        node_counts=allowed_node_counts(job),
        steps=spec.steps,
        suspend=spec.suspend,
        silence_s=float(spec.health.silence_seconds),
        flap_tolerance_s=float(spec.health.flap_tolerance_seconds),
        startup_s=float(spec.health.startup_seconds),
        reconnect_grace_s=float(spec.health.reconnect_grace_seconds),
        max_restarts=spec.recovery.max_restarts,
        budgets=dict(spec.recovery.budgets),
        max_nodes_per_hour=spec.remediation.max_nodes_per_hour,
        quarantine=spec.remediation.mode == "Enforce",
    )


def allowed_node_counts(job: TrainingJob) -> tuple[int, ...]:
    """Node counts between minNodes and nodes whose data-parallel size divides the global batch."""
    spec = job.spec
    counts = range(spec.nodes, spec.min_nodes - 1, -1)
    megatron = spec.runtime.megatron
    if megatron is None:
        return tuple(counts)
    layout = megatron.parallelism
    model_ranks = layout.tensor * layout.pipeline * layout.context
    allowed = []
    for count in counts:
        world = count * spec.ranks_per_node
        data, rest = divmod(world, model_ranks)
        if data and not rest and megatron.data.global_batch % (data * megatron.data.micro_batch) == 0:
            allowed.append(count)
    return tuple(allowed)
