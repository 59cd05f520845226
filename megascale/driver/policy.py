"""Builds the core's policy for a job from its manifest and from the environment it runs in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from megascale.core.contract.policy import Policy, RecoveryOverride
from megascale.core.contract.vocabulary import Action, Cause
from megascale.core.decide.spares import spares_for
from megascale.job import JobSpec, TrainingJob
from megascale.job.detection import Detection
from megascale.job.log_rules import log_rules
from megascale.job.recovery import Override

_SPARES_ON_ONE_MACHINE: Final = 1


def spare_nodes(job: TrainingJob, *, shared_machine: bool = False) -> int:
    """Return the number of spare nodes: as the manifest sets it, or derived from the node failure rate.

    Args:
        shared_machine: all nodes are processes of one machine; the derived number is then 1.
    """
    wanted = job.spec.spare_nodes
    if isinstance(wanted, int):
        return wanted
    if shared_machine:
        return _SPARES_ON_ONE_MACHINE
    return spares_for(job.spec.nodes, job.spec.recovery.node_failures_per_day)


def policy_of(job: TrainingJob, *, shared_machine: bool = False) -> Policy:
    """Convert a manifest to the core's policy.

    Args:
        shared_machine: the nodes are processes of one machine: spares are acquired after the first launch,
            and nodes are not checked for wrong numbers.
    """
    return _with_detection(_with_recovery(_base(job, shared_machine), job.spec), job.spec.detection)


def needs_restart(before: TrainingJob, after: TrainingJob) -> bool:
    """Return whether the manifests differ in a field that ranks read at launch."""
    return _read_by_ranks(before.spec) != _read_by_ranks(after.spec)


def refusal(before: TrainingJob, after: TrainingJob) -> str | None:
    """Return why `after` cannot replace `before` while the job runs on this machine, None if it can."""
    remedy = "stop the job, then run it again"
    if needs_restart(before, after):
        return f"it changes what ranks have read: {remedy}"
    old, new = before.spec.health.heartbeat_seconds, after.spec.health.heartbeat_seconds
    if old != new:
        return f"it changes health.heartbeatSeconds from {old} to {new}, which agents have read: {remedy}"
    return None


def _read_by_ranks(spec: JobSpec) -> dict[str, Any]:
    checkpoint = {"uri", "every_steps", "keep", "memory"}
    whole = dict.fromkeys(("runtime", "network", "ranks_per_node", "steps"), True)
    return spec.model_dump(include={**whole, "checkpoint": checkpoint})


def _base(job: TrainingJob, shared_machine: bool) -> Policy:
    """Return a policy with the job's sizes, checkpoint and health settings and environment."""
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
        suspend=spec.suspend,
        reports_steps=spec.runtime.command is None,
        memory_snapshots=spec.checkpoint.memory.enabled,
        save_s=float(spec.checkpoint.save_seconds),
        auto_cadence=spec.checkpoint.cadence == "auto",
        silence_s=float(spec.health.silence_seconds),
        flap_tolerance_s=float(spec.health.flap_tolerance_seconds),
        startup_s=float(spec.health.startup_seconds),
        reconnect_grace_s=float(spec.health.reconnect_grace_seconds),
        check_numbers=not shared_machine,
        log_rules=log_rules(spec.log_rules),
    )


def _with_recovery(policy: Policy, spec: JobSpec) -> Policy:
    recovery, remediation = spec.recovery, spec.remediation
    return replace(
        policy,
        max_restarts=recovery.max_restarts,
        budgets=dict(recovery.budgets),
        no_progress_limit=recovery.no_progress_limit,
        minimum_run_s=float(recovery.minimum_run_seconds),
        backoff_limit_s=float(recovery.backoff_limit_seconds),
        acquire_tries=recovery.node_request_tries,
        shrink_after_s=float(recovery.shrink_after_seconds),
        grow_after_s=float(recovery.grow_after_seconds),
        container_restart_s=float(recovery.container_restart_seconds),
        apply_within_s=float(recovery.apply_within_seconds),
        kill_s=float(recovery.kill_seconds),
        node_failures_per_day=recovery.node_failures_per_day,
        overrides=tuple(_override(entry) for entry in recovery.overrides),
        max_nodes_per_hour=remediation.max_nodes_per_hour,
        max_excluded_share=remediation.max_excluded_share,
        quarantine=remediation.mode != "Observe",
    )


def _with_detection(policy: Policy, detection: Detection) -> Policy:
    blame, lemon, alerts = detection.blame, detection.lemon, detection.network_alerts
    correlation = detection.correlation
    return replace(
        policy,
        shadow=detection.shadowed,
        hang_steps=detection.hang.steps,
        hang_margin_s=float(detection.hang.margin_seconds),
        straggler_slowdown=detection.straggler.slowdown,
        distrust_steps=detection.numerics.distrust_steps,
        node_blame_limit=blame.limit,
        blame_half_life_s=float(blame.half_life_seconds),
        lemon_incidents=lemon.incidents,
        lemon_window_s=float(lemon.window_seconds),
        correlate_s=float(correlation.window_seconds),
        attribution_before_s=float(correlation.before_seconds),
        attribution_after_s=float(correlation.after_seconds),
        shared_cause_nodes=correlation.shared_cause_nodes,
        tolerated_alerts=alerts.limit,
        alert_window_s=float(alerts.window_seconds),
    )


def _override(entry: Override) -> RecoveryOverride:
    match = entry.match
    return RecoveryOverride(
        action=Action(entry.action),
        cause=Cause(match.cause) if match.cause else None,
        rule=match.rule or None,
        category=match.category or None,
        xid=match.xid,
        error_type=match.error_type or None,
        message=match.message or None,
    )
