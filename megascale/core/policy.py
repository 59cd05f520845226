"""What the job asks for and every threshold the core decides by; changeable while the job runs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds and sizes. Times in seconds.

    Attributes:
        nodes, spare_nodes, min_nodes, ranks_per_node: sizes of the job.
        node_counts: node counts the layout can run on, largest first; () = only `nodes`.
        steps: the job is complete after this step.
        suspend: hold no ranks while set.
        silence_s: no beat for this long = the node is lost; suspected and probed at two thirds of it.
        flap_tolerance_s: a stall without positive evidence is waited out this long (links flap for 2-10 s).
        startup_s: launch to first step, at most.
        hang_steps, hang_margin_s: a stall is suspected after hang_steps x learnt step time + margin.
        reconnect_grace_s: a new driver waits this long before any verdict of silence.
        kill_s: a process that is not reaped by then is stuck in the kernel and its node leaves.
        evidence_s, probe_s, save_s: deadlines of the effects.
        max_restarts: over the job; budgets: per cause.
        no_progress_limit: so many failures in a row without a new step fail the job.
        node_blame_limit: blame at which a node is replaced and not restarted again.
        blame_half_life_s: blame decays by half in this time.
        max_nodes_per_hour: exclusions per hour beyond which automation stops and pages.
        acquire_retry_s, acquire_tries: back-off base and bound when the fleet refuses.
        shrink_after_s: wait this long for nodes before running on fewer (never below min_nodes).
        container_restart_s: a node's container is restarted at most once in this time.
        quarantine: ask the cluster to take convicted nodes out of service.
        shadow: decide and record, do not act on detections (exits are always acted on).
    """

    nodes: int = 1
    spare_nodes: int = 0
    min_nodes: int = 1
    ranks_per_node: int = 1
    node_counts: tuple[int, ...] = ()
    steps: int = 1
    suspend: bool = False
    silence_s: float = 15.0
    flap_tolerance_s: float = 30.0
    startup_s: float = 600.0
    hang_steps: float = 3.0
    hang_margin_s: float = 10.0
    reconnect_grace_s: float = 10.0
    kill_s: float = 10.0
    evidence_s: float = 10.0
    probe_s: float = 5.0
    save_s: float = 120.0
    max_restarts: int = 100
    budgets: dict[str, int] = field(default_factory=dict)
    no_progress_limit: int = 3
    node_blame_limit: float = 2.5
    blame_half_life_s: float = 6 * 3600.0
    max_nodes_per_hour: int = 3
    acquire_retry_s: float = 5.0
    acquire_tries: int = 60
    shrink_after_s: float = 60.0
    container_restart_s: float = 600.0
    quarantine: bool = False
    shadow: bool = False
