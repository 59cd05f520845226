"""The operator's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The metrics in a registry of their own. Names begin with megascale_operator_."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "megascale_operator_"
        self.reconcile_seconds = Histogram(
            f"{prefix}reconcile_duration_seconds",
            "Duration of one reconcile, API calls included.",
            ["controller"],
            registry=self.registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60),
        )
        self.reconcile_errors = Counter(
            f"{prefix}reconcile_errors_total", "Reconciles that failed and will be retried.", ["controller"],
            registry=self.registry,
        )  # fmt: skip
        self.queue_depth = Gauge(
            f"{prefix}queue_depth", "Keys waiting to be reconciled.", ["controller"], registry=self.registry
        )
        self.watch_age = Gauge(
            f"{prefix}watch_age_seconds",
            "Time since the last response or watch event (bookmarks included) for this resource.",
            ["resource"],
            registry=self.registry,
        )
        self.leader = Gauge(
            f"{prefix}leader", "1 while this replica is the leader, else 0.", registry=self.registry
        )
        self.writes = Counter(
            f"{prefix}writes_total", "API writes by kind of object and action.", ["resource", "action"],
            registry=self.registry,
        )  # fmt: skip
        self.pods_created = Counter(
            f"{prefix}pods_created_total", "Pods created, by role.", ["role"], registry=self.registry
        )
        self.breaker_open = Gauge(
            f"{prefix}node_breaker_open",
            "1 while the breaker refuses further quarantines because too many nodes are quarantined, else 0.",
            registry=self.registry,
        )
        self.quarantined = Gauge(
            f"{prefix}nodes_quarantined",
            "Nodes that carry the quarantine annotation.",
            registry=self.registry,
        )
        self.quarantines = Counter(
            f"{prefix}node_quarantines_total", "Quarantines by mode.", ["mode"], registry=self.registry
        )
        self.releases = Counter(
            f"{prefix}node_releases_total", "Nodes put back into service, by person or node check.", ["by"],
            registry=self.registry,
        )  # fmt: skip
        self.refusals = Counter(
            f"{prefix}node_refusals_total", "Quarantine requests that were refused, by cause.", ["cause"],
            registry=self.registry,
        )  # fmt: skip

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
