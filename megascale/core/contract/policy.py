"""The core's view of the manifest: sizes of the job and thresholds of its decisions. It can change while the
job runs, with a `SpecChanged`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from megascale.core.contract.vocabulary import Action, Cause, Detector

LogCategory = Literal["user_code", "gpu", "network", "storage", "host", "framework", "data", "oom", "benign"]
"""What a log line or a hardware event is about; `class` in manifests and JSON."""
LogAction = Literal["none", "restart", "replace_node", "fail_job", "alert"]
"""What a log line or a hardware event calls for."""
MACHINE_CLASSES: Final[tuple[LogCategory, ...]] = ("gpu", "host", "network", "storage")
"""Classes of faults that a node has, not its ranks."""
PYTHON_EXCEPTION: Final = "python-exception"
"""Rule of a traceback whose exception no rule of the table knows."""
NODE_CHECKS: Final = "node-checks"
"""Rule of a node that computed wrong numbers in the checks of the diagnosis."""
UNTABLED_RULES: Final = (PYTHON_EXCEPTION, NODE_CHECKS)
"""Rules that faults can have besides those of the table and of spec.logRules."""


@dataclass(frozen=True, slots=True)
class LogRuleSpec:
    """An entry of `spec.logRules`. It is for lines that `pattern` is found in, or it changes the built-in
    rule named `rule`, or all built-in rules of the class `of_category`; the other two are None.

    Attributes:
        id: named in incidents and alerts.
        category, action: what the line means; None = as the built-in rule says.
    """

    id: str
    pattern: str | None = None
    rule: str | None = None
    of_category: str | None = None
    category: str | None = None
    action: str | None = None


@dataclass(frozen=True, slots=True)
class RecoveryOverride:
    """An exception to the recovery ladder (`recovery.overrides`); every field that is given must match.

    Attributes:
        cause: of the incident; rule, category, xid: of the log line or hardware event behind it.
        error_type: exception in the rank's exit report; message: regular expression found in the reason.
    """

    action: Action
    cause: Cause | None = None
    rule: str | None = None
    category: str | None = None
    xid: int | None = None
    error_type: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds and sizes. Times in seconds.

    Attributes:
        nodes, spare_nodes, min_nodes, ranks_per_node: sizes of the job.
        spares_after_launch: ask for spares only once the first attempt is launched (they share its machine).
        node_counts: node counts the layout can run on, largest first; () = only `nodes`.
        pipeline: pipeline stages; ranks are numbered so that a stage's ranks are consecutive.
        model_nodes: nodes that hold one copy of the model.
        steps: the job is complete after this step.
        suspend: hold no ranks while set.
        reports_steps: ranks report their steps; a plain script that does not is watched by its exits only.
        memory_snapshots: ranks keep snapshots in the memory of their node, to restart from in place.
        silence_s: no heartbeat for this long = the node is lost; suspected and probed at two thirds of it.
        flap_tolerance_s: a stall without positive evidence is waited out this long (links flap for 2-10 s).
        startup_s: launch to first step, at most; a shorter bound is learnt from launches that restored.
        hang_steps, hang_margin_s: a stall is suspected after hang_steps x learnt step time + margin.
        reconnect_grace_s: a new driver waits this long before any verdict of silence.
        kill_s: a process that is not reaped by then is stuck in the kernel and its node leaves.
        save_s: ranks that are asked to save have this long.
        max_restarts: over the job; budgets: per cause.
        no_progress_limit: so many failures in a row at the same step fail the job, as do three times as
            many without a new step.
        minimum_run_s: an attempt of a script that reports no steps failed at its start if it ended sooner.
        backoff_limit_s: the longest wait before a restart that follows others, 0 = never wait.
        overrides: exceptions to the recovery ladder, first match wins.
        log_rules: what log lines mean, ahead of the built-in rules.
        node_blame_limit: blame at which a node is replaced and not restarted again.
        blame_half_life_s: blame decays by half in this time.
        lemon_incidents, lemon_window_s: a node with so many incidents in this time is retired, however
            long ago the last one was.
        max_nodes_per_hour, max_excluded_share: exclusions per hour, and share of the job's nodes per
            week, beyond which automation stops and pages.
        shared_cause_nodes: so many nodes of one topology domain (or twice as many anywhere) lost within
            correlate_s share a cause; none of them is blamed.
        topology_keys: node labels that name network domains, narrowest first.
        correlate_s: events closer than this are one incident.
        attribution_before_s, attribution_after_s: a hardware event this long before or after an exit
            explains it (arXiv 2410.21680).
        tolerated_alerts, alert_window_s: so many network alerts within the window evict a node.
        acquire_tries: so many requests for nodes in a row that nothing came of fail the job.
        shrink_after_s: wait this long for nodes before running on fewer (never below min_nodes).
        grow_after_s: a shrunk job restarts on all its nodes when they have been back for this long.
        container_restart_s: a node's container is restarted at most once in this time.
        apply_within_s: a changed spec that needs a restart is applied at the next one, at the latest then.
        distrust_steps: wrong numbers so few steps after a load discredit the checkpoint that was loaded.
        auto_cadence: choose the steps between checkpoints from measured save cost and failure rate.
        node_failures_per_day: failure rate to expect of one node before the job has its own (Llama 3).
        straggler_slowdown: a rank this much slower than its peers, as a share, is suspected.
        check_numbers: after wrong numbers nodes are checked before ranks run again.
        quarantine: ask the cluster to take convicted nodes out of service.
        shadow: detectors whose findings are recorded and not acted on.
    """

    nodes: int = 1
    spare_nodes: int = 0
    spares_after_launch: bool = False
    min_nodes: int = 1
    ranks_per_node: int = 1
    node_counts: tuple[int, ...] = ()
    pipeline: int = 1
    model_nodes: int = 1
    steps: int = 1
    suspend: bool = False
    reports_steps: bool = True
    memory_snapshots: bool = False
    silence_s: float = 15.0
    flap_tolerance_s: float = 30.0
    startup_s: float = 600.0
    hang_steps: float = 3.0
    hang_margin_s: float = 10.0
    reconnect_grace_s: float = 10.0
    kill_s: float = 10.0
    save_s: float = 120.0
    max_restarts: int = 100
    budgets: dict[str, int] = field(default_factory=dict)
    no_progress_limit: int = 3
    minimum_run_s: float = 5.0
    backoff_limit_s: float = 30.0
    overrides: tuple[RecoveryOverride, ...] = ()
    log_rules: tuple[LogRuleSpec, ...] = ()
    node_blame_limit: float = 2.5
    blame_half_life_s: float = 6 * 3600.0
    lemon_incidents: int = 4
    lemon_window_s: float = 14 * 86400.0
    max_nodes_per_hour: int = 3
    max_excluded_share: float = 0.1
    shared_cause_nodes: int = 3
    topology_keys: tuple[str, ...] = (
        "network.topology.nvidia.com/leaf",
        "network.topology.nvidia.com/spine",
    )
    correlate_s: float = 60.0
    attribution_before_s: float = 600.0
    attribution_after_s: float = 300.0
    tolerated_alerts: int = 2
    alert_window_s: float = 300.0
    acquire_tries: int = 60
    shrink_after_s: float = 60.0
    grow_after_s: float = 600.0
    container_restart_s: float = 600.0
    apply_within_s: float = 86400.0
    distrust_steps: int = 50
    auto_cadence: bool = False
    node_failures_per_day: float = 3.8e-3
    straggler_slowdown: float = 0.05
    check_numbers: bool = False
    quarantine: bool = False
    shadow: tuple[Detector, ...] = ()
