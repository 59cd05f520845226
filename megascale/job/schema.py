"""The TrainingJob manifest (contracts 2): one schema behind YAML files, the command line and the CRD."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from megascale.job.base import (
    Count,
    JobName,
    Natural,
    NodeName,
    Problem,
    Seconds,
    Section,
    Text,
    Words,
    refuse,
)
from megascale.job.megatron import Megatron
from megascale.job.network import Network
from megascale.job.recovery import Recovery
from megascale.job.rules import node_counts, spec_problems
from megascale.job.scheduling import Scheduling
from megascale.job.template import Template

API_VERSION = "megascale.io/v1alpha1"
KIND = "TrainingJob"
MANAGER = "megascale.io/operator"
"""`spec.managedBy` of jobs that our operator looks after."""
MAX_ARGUMENT = 32_768
Argument = Annotated[str, Field(min_length=1, max_length=MAX_ARGUMENT)]
EXACTLY_ONE_RUNTIME: dict[str, Any] = {"oneOf": [{"required": ["megatron"]}, {"required": ["command"]}]}


class Metadata(Section):
    """Kubernetes object metadata; labels, annotations, namespace and the like are passed through."""

    model_config = ConfigDict(extra="allow")

    name: JobName
    """Name of the job: of runs/<name>/ on a workstation, of the object on a cluster."""


class Command(Section):
    """Run any torchrun-style script; RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set."""

    args: Annotated[
        list[Argument],
        Field(min_length=1, max_length=1024),
        Words("a list of texts with at least one entry"),
    ]
    """Program and arguments of each rank, as for exec; no shell is involved."""
    env: Annotated[dict[str, Annotated[str, Field(max_length=MAX_ARGUMENT)]], Field(max_length=256)] = Field(
        default_factory=dict
    )
    """Environment variables added for the ranks."""


class Runtime(Section):
    """What the ranks run: exactly one of megatron and command."""

    model_config = ConfigDict(json_schema_extra=EXACTLY_ONE_RUNTIME)

    megatron: Megatron | None = None
    """Train a GPT with the Megatron-core engine."""
    command: Command | None = None
    """Run your own torchrun-style script."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.megatron is None) == (self.command is None):
            message = (
                "neither megatron nor command is given"
                if self.megatron is None
                else "both megatron and command are given"
            )
            refuse([Problem((), f"{message}, expected exactly one of them")])
        return self


class MemoryTier(Section):
    """Copies of each rank's state in the memory of its node."""

    enabled: bool = True
    """Keep such copies: a rank that dies is restored without touching storage."""


class Checkpoint(Section):
    """When and where the training state is saved."""

    uri: Text | None = None
    """Folder of the checkpoints, a path or file:///path. null = checkpoints/ in the run's own folder, on a
    cluster a folder of the job under the operator's --checkpoint-root."""
    every_steps: Count = 50
    """Steps between two durable checkpoints; one is also saved at the end."""
    keep: Count = 3
    """Newest checkpoints that are kept; older ones are pruned."""
    memory: MemoryTier = MemoryTier()
    """Copies of each rank's state in the memory of its node."""


class Health(Section):
    """When a node or a rank counts as lost. Times in seconds."""

    heartbeat_seconds: Seconds = 2
    """Time between two heartbeats of an agent."""
    silence_seconds: Seconds = 15
    """A node that is not heard of for this long is lost; at least twice heartbeatSeconds."""
    flap_tolerance_seconds: Annotated[int, Field(ge=0, le=86_400)] = 30
    """A stall without positive evidence of a fault is waited out this long: links flap for 2 to 10 s."""
    startup_seconds: Seconds = 600
    """Launch to the first step, at most."""
    reconnect_grace_seconds: Seconds = 10
    """A restarted driver waits this long for agents before it calls any of them silent."""
    orphan_seconds: Seconds = 60
    """Ranks without a driver, and without anyone to restart it, save and exit after this time."""
    check_slots: bool = True
    """Kubernetes only: a new slot's node passes the light check before it gets ranks."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.silence_seconds < 2 * self.heartbeat_seconds:
            message = f"{self.silence_seconds} is less than twice heartbeatSeconds {self.heartbeat_seconds}"
            refuse([Problem(("silenceSeconds",), message, "one late heartbeat would count as a lost node")])
        return self


class Remediation(Section):
    """What may be done to nodes outside of this job."""

    mode: Literal["Observe", "Annotate", "Enforce"] = "Observe"
    """Observe: only record; Annotate: mark bad nodes; Enforce: cordon and taint them."""
    max_nodes_per_hour: Natural = 3
    """Nodes the job gives up per hour; beyond it automation stops and pages."""


class Fault(Section):
    """A fault injected for a demonstration or a test."""

    kind: Literal["killRank", "killNode", "stopRank", "stopNode", "slowRank", "killDriver"]
    """kill is SIGKILL, stop is SIGSTOP: of a rank's process, a node's agent with its ranks, or the driver;
    slow makes the forward passes of a rank take three times as long from then on."""
    rank: Natural | None = None
    """Global rank; for killRank, stopRank and slowRank."""
    node: NodeName | None = None
    """Node name, node-0, node-1... on a workstation; for killNode and stopNode."""
    step: Count
    """Step in which the fault happens."""
    point: Literal["step", "save", "commit"] = "step"
    """step: during the step; save: while that step's checkpoint is written; commit: just before it counts."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        target = {"Rank": "rank", "Node": "node"}.get(self.kind[-4:])
        given = {"rank": self.rank, "node": self.node}
        problems = []
        for name, value in given.items():
            if name == target and value is None:
                example = "rank: 1" if name == "rank" else "node: node-1"
                problems.append(
                    Problem((name,), f"is required for kind {self.kind}", f"for example {example}")
                )
            if name != target and value is not None:
                instead = f"; name the {target} instead" if target else ""
                problems.append(
                    Problem((name,), f"has no meaning for kind {self.kind}", f"remove it{instead}")
                )
        refuse(problems)
        return self


class JobSpec(Section):
    """What to train, on how many nodes, and what to do about faults."""

    nodes: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Nodes that train."""
    ranks_per_node: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes per node, one per GPU where there are GPUs."""
    spare_nodes: Annotated[
        Annotated[int, Field(ge=0, le=100_000)] | Literal["auto"], Words("a whole number >= 0, or auto")
    ] = "auto"
    """Idle nodes kept ready to replace a lost one; auto = sized from the failure rate."""
    min_nodes: Annotated[int, Field(ge=1, le=100_000), Words(default="nodes")] = Field(
        default_factory=lambda fields: fields["nodes"]
    )
    """Train on down to this many nodes when no spare is left."""
    suspend: bool = False
    """Hold the job: save, release its ranks, and wait until this is false again. On a cluster nodes, minNodes
    and spareNodes can be changed while this is true."""
    steps: Annotated[int, Field(ge=1, le=10**9)]
    """The job is complete after this optimizer step."""
    runtime: Runtime
    """What the ranks run."""
    network: Network = Network()
    """How long a link may be silent before anything gives up."""
    checkpoint: Checkpoint = Checkpoint()
    """When and where the training state is saved."""
    health: Health = Health()
    """When a node or a rank counts as lost."""
    recovery: Recovery = Recovery()
    """How far automation goes before the job fails."""
    remediation: Remediation = Remediation()
    """What may be done to nodes outside of this job."""
    faults: Annotated[list[Fault], Field(max_length=256)] = Field(default_factory=list)
    """Faults injected for demonstrations and tests."""
    managed_by: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
            max_length=63,
        ),
        Words("a name such as megascale.io/operator"),
    ] = MANAGER
    """Kubernetes only: who looks after the job; the operator leaves jobs with another name here alone."""
    active_deadline_seconds: Count | None = None
    """Kubernetes only: the job fails when it is not complete this long after it began, time suspended
    included; null = no limit."""
    deletion_save_seconds: Annotated[int, Field(ge=0, le=86_400)] = 120
    """Kubernetes only: how long a deleted job may take to save before its pods go; 0 = nothing is saved."""
    ttl_seconds_after_finished: Natural | None = None
    """Kubernetes only: the job is deleted this long after it ended; null = it stays."""
    scheduling: Scheduling = Scheduling()
    """Kubernetes only: how the slots are placed."""
    template: Template = Template()
    """Kubernetes only: changes to the pods, in the shape of a pod template."""

    @property
    def world_size(self) -> int:
        """Ranks at full strength."""
        return self.nodes * self.ranks_per_node

    @property
    def node_counts(self) -> tuple[int, ...]:
        """Node counts between nodes and minNodes that the layout can run on, largest first."""
        return node_counts(self)

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse(spec_problems(self))
        if self.runtime.megatron is not None:
            self.runtime.megatron.parallelism.set_world(self.world_size)
        return self


class TrainingJob(Section):
    """A training job: the same file for `megascale run` and for `kubectl apply`."""

    model_config = ConfigDict(title=KIND)

    api_version: Literal["megascale.io/v1alpha1"]
    """Version of this schema."""
    kind: Literal["TrainingJob"]
    """Always TrainingJob."""
    metadata: Metadata
    """Name of the job, and Kubernetes metadata."""
    spec: JobSpec
    """What to train, on how many nodes, and what to do about faults."""
