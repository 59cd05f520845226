"""The NodeCheck manifest: health checks on nodes, by name or by label."""

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
    """Which nodes to check, and how. It cannot be changed: another check is another object."""

    nodes: Annotated[list[NodeName] | None, Field(min_length=1, max_length=1024)] = None
    """Names of the nodes; either these or nodeSelector."""
    node_selector: Annotated[dict[str, LabelValue] | None, Field(max_length=64)] = None
    """Labels of the nodes, {} = every node; either this or nodes."""
    mode: Literal["light"] = "light"
    """light: at most 60 s a node: compute, memory bandwidth, links within the node and to one neighbour."""
    max_concurrent: Annotated[int, Field(ge=1, le=256)] = 4
    """Nodes that are checked at the same time."""
    timeout_seconds: Annotated[int, Field(ge=10, le=3600)] = 300
    """A node that has no verdict after this time is counted as failed; starting the pod included."""
    release_after_passes: Annotated[int, Field(ge=1, le=10)] = 2
    """Checks in a row that a node must pass before our quarantine is lifted from it."""
    image: Text | None = None
    """Image of the check; default: the operator's."""
    tolerations: Annotated[list[Toleration] | None, Field(max_length=32)] = None
    """Taints that the checks put up with besides the quarantine's."""
    resources: Resources | None = None
    """What a check may use, such as all GPUs of a node."""
    ttl_seconds_after_finished: Natural | None = None
    """The check is deleted this long after it ended; null = it stays."""

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
    """Health checks on nodes; refuses nodes that are busy, and never lifts what a person set."""

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
    """Nodes that ended alike."""

    result: Word
    """How their check ended."""
    reason: Annotated[str | None, Field(max_length=300)] = None
    """What was measured, and what was expected."""
    count: Natural
    """How many nodes."""
    nodes: Annotated[list[NodeName] | None, at_most(20)] = None
    """The first twenty of them."""


class NodeCheckStatus(Section):
    """How far the check is; display only."""

    observed_generation: SeenGeneration = None
    state: Word | None = None
    """The check in one word, for display; programs read conditions."""
    total: Natural | None = None
    """Nodes to be checked."""
    running: Natural | None = None
    """Nodes that are being checked."""
    passed: Natural | None = None
    """Nodes that passed."""
    convicted: Natural | None = None
    """Nodes that failed."""
    unknown: Natural | None = None
    """Nodes that could not be judged."""
    skipped: Natural | None = None
    """Nodes that were left alone, such as those that a job is on."""
    start_time: Time | None = None
    """When the first check began."""
    completion_time: Time | None = None
    """When the last check ended."""
    groups: Annotated[list[Group] | None, at_most(32)] = None
    """Nodes that ended alike; Events have them all."""
    conditions: Conditions = None
    """Complete, Failed."""


CEL_RULES: Final = {
    "spec": [
        CelRule(
            "has(self.nodes) != has(self.nodeSelector)", "exactly one of nodes, nodeSelector must be given"
        ),
        CelRule("self == oldSelf", "spec cannot be changed: make another NodeCheck"),
    ],
}
KEYED: Final = {"spec.nodes": (), "status.conditions": ("type",)}
