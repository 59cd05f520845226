"""From the manifest to what the core decides by."""

from __future__ import annotations

from typing import Final

from megascale.core.contract.policy import Policy, RecoveryOverride
from megascale.core.decide.spares import spares_for
from megascale.job import TrainingJob
from megascale.job.log_rules import log_rules
from megascale.job.recovery import Override

_SPARES_ON_ONE_MACHINE: Final = 1


def spare_nodes(job: TrainingJob, *, shared_machine: bool = False) -> int:
    """Spares the job keeps: as the manifest says, or as many as its failure rate calls for."""
    wanted = job.spec.spare_nodes
    if isinstance(wanted, int):
        return wanted
    if shared_machine:
        return _SPARES_ON_ONE_MACHINE
    return spares_for(job.spec.nodes, Policy().node_failures_per_day)


def policy_of(job: TrainingJob, *, shared_machine: bool = False) -> Policy:
    """The core's view of a manifest.

    Args:
        shared_machine: the nodes are processes of one machine: spares come after the first launch, and
            nobody can take a node out of service.
    """
    spec = job.spec
    layout = spec.runtime.megatron.parallelism if spec.runtime.megatron else None
    return Policy(
        nodes=spec.nodes,
        spare_nodes=spare_nodes(job, shared_machine=shared_machine),
        spares_after_launch=shared_machine,
        min_nodes=spec.min_nodes,
        topology_keys=tuple(reversed(spec.scheduling.topology_keys)),
        ranks_per_node=spec.ranks_per_node,
        node_counts=spec.node_counts,
        pipeline=layout.pipeline if layout else 1,
        model_nodes=-(-layout.ranks_per_replica // spec.ranks_per_node) if layout else 1,
        steps=spec.steps,
        reports_steps=spec.runtime.command is None,
        memory_snapshots=spec.checkpoint.memory.enabled,
        suspend=spec.suspend,
        silence_s=float(spec.health.silence_seconds),
        flap_tolerance_s=float(spec.health.flap_tolerance_seconds),
        startup_s=float(spec.health.startup_seconds),
        reconnect_grace_s=float(spec.health.reconnect_grace_seconds),
        max_restarts=spec.recovery.max_restarts,
        budgets=dict(spec.recovery.budgets),
        overrides=tuple(_override(entry) for entry in spec.recovery.overrides),
        log_rules=log_rules(spec.log_rules),
        max_nodes_per_hour=spec.remediation.max_nodes_per_hour,
        check_numbers=not shared_machine,
        quarantine=spec.remediation.mode != "Observe",
    )


def _override(entry: Override) -> RecoveryOverride:
    match = entry.match
    return RecoveryOverride(
        action=entry.action,
        cause=match.cause or "",
        rule=match.rule or "",
        category=match.category or "",
        xid=match.xid,
        error_type=match.error_type or "",
        message=match.message or "",
    )
