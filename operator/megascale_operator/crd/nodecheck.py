"""The pydantic models of the NodeCheck resource: health checks on nodes selected by name or label."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from megascale.job.api import (
    Label,
    LabelValue,
    Natural,
    NodeName,
    Problem,
    Resources,
    Section,
    Text,
    Toleration,
    refuse,
    repeated,
)
from megascale_operator.crd.cel_rule import CelRule
from megascale_operator.crd.status import Conditions, SeenGeneration, Time, Word, at_most

KIND: Final = "NodeCheck"


class Metadata(Section):
    """Kubernetes object metadata."""

    model_config = ConfigDict(extra="allow")

    name: Label
    """Name of the check."""


class NodeCheckSpec(Section):
    """Which nodes to check, and how. Immutable: create another NodeCheck for another check."""

    nodes: Annotated[list[NodeName] | None, Field(min_length=1, max_length=1024)] = None
    """Names of the nodes to check. Exactly one of nodes and nodeSelector must be given."""
    node_selector: Annotated[dict[str, LabelValue] | None, Field(max_length=64)] = None
    """Labels of the nodes to check; {} selects every node."""
    mode: Literal["light"] = "light"
    """light: takes about a minute per node; checks the results and the speed of compute, memory and the links
    within the node. Links between nodes are not checked: that is megascale diagnose --nodes."""
    max_concurrent: Annotated[int, Field(ge=1, le=256)] = 4
    """Largest number of nodes that are checked at the same time."""
    timeout_seconds: Annotated[int, Field(ge=10, le=3600)] = 300
    """A node without a result after this time, which includes the start of the pod, is counted as unknown,
    which is neither passed nor convicted."""
    release_after_passes: Annotated[int, Field(ge=1, le=10)] = 2
    """Number of consecutive checks that a node must pass before the operator lifts its quarantine; one is
    enough if the cause was straggler, hang or node_lost. Checks from before the quarantine do not count."""
    image: Text | None = None
    """Container image of the check; by default the operator's image."""
    tolerations: Annotated[list[Toleration] | None, Field(max_length=32)] = None
    """Tolerations of the check pods, in addition to that of the quarantine taint."""
    resources: Resources | None = None
    """Resources of a check pod, e.g. all GPUs of a node."""
    ttl_seconds_after_finished: Natural | None = None
    """Time after which the finished NodeCheck is deleted; if null it is not deleted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.nodes is None) == (self.node_selector is None):
            given = (
                "neither nodes nor nodeSelector is"
                if self.nodes is None
                else "nodes and nodeSelector are both"
            )
            refuse([Problem((), f"{given} given, expected exactly one of them")])
        refuse(repeated("nodes", "node", self.nodes or ()))
        return self


class NodeCheck(Section):
    """Health checks on nodes. Skips busy nodes, and never lifts a taint or cordon that a user set."""

    model_config = ConfigDict(title=KIND)

    api_version: Literal["megascale.io/v1alpha1"]
    """Version of this schema."""
    kind: Literal["NodeCheck"]
    """Always NodeCheck."""
    metadata: Metadata
    """Name of the check, and Kubernetes metadata."""
    spec: NodeCheckSpec
    """Which nodes to check, and how."""


class Group(Section):
    """Nodes whose checks had the same result."""

    result: Word
    """Result of their checks."""
    reason: Annotated[str | None, Field(max_length=300)] = None
    """The measured and the expected values."""
    count: Natural
    """Number of these nodes."""
    nodes: Annotated[list[NodeName] | None, at_most(20)] = None
    """Names of the first 20 of these nodes."""


class NodeCheckStatus(Section):
    """Progress of the check, for display only."""

    observed_generation: SeenGeneration = None
    state: Word | None = None
    """The check in one word, for display; programs read conditions."""
    total: Natural | None = None
    """Number of nodes to check."""
    running: Natural | None = None
    """Number of nodes that are being checked."""
    passed: Natural | None = None
    """Number of nodes that passed."""
    convicted: Natural | None = None
    """Number of nodes that failed."""
    unknown: Natural | None = None
    """Number of nodes whose check had no conclusive result."""
    skipped: Natural | None = None
    """Number of nodes that were not checked, e.g. because a job runs on them."""
    start_time: Time | None = None
    """Time at which the first check began."""
    completion_time: Time | None = None
    """Time at which the last check ended."""
    groups: Annotated[list[Group] | None, at_most(32)] = None
    """Nodes grouped by result and reason, the worst first. Events of the NodeCheck name every convicted and
    every unknown node."""
    conditions: Conditions = None
    """Conditions of the types Complete and Failed."""


CEL_RULES: Final = {
    "spec": [
        CelRule(
            "has(self.nodes) != has(self.nodeSelector)", "exactly one of nodes, nodeSelector must be given"
        ),
        CelRule("self == oldSelf", "spec cannot be changed: make another NodeCheck"),
    ],
}
KEYED: Final = {"spec.nodes": (), "status.conditions": ("type",)}
