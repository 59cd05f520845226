"""The TrainingJob manifest: one schema behind YAML files, the command line and the CRD."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from megascale.job.base import (
    CheckpointUri,
    Count,
    JobName,
    Natural,
    Problem,
    Seconds,
    Section,
    Words,
    refuse,
)
from megascale.job.detection import Detection, without_default
from megascale.job.faults import Fault
from megascale.job.log_rules import MAX_LOG_RULES, LogRule, id_problems
from megascale.job.megatron import Megatron
from megascale.job.network import Network
from megascale.job.recovery import Recovery
from megascale.job.scheduling import Scheduling
from megascale.job.template import Template
from megascale.job.validation import (
    Size,
    fault_problems,
    node_counts,
    override_problems,
    size_problems,
    training_problems,
)

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
    """Keep a copy of each rank's state in the memory of its node, so that a rank that dies is restored
    without reading from storage."""


class Checkpoint(Section):
    """When and where the training state is saved."""

    uri: CheckpointUri | None = None
    """Folder of the checkpoints on a file system that all nodes share, a path or file:///path. null =
    checkpoints/ in the run's own folder, on a cluster a folder of the job under the operator's
    --checkpoint-root."""
    every_steps: Count = 50
    """Steps between two durable checkpoints; one is also saved at the end."""
    cadence: Literal["fixed", "auto"] = "fixed"
    """fixed: save every everySteps; auto: save every everySteps until the job has measured the time of a step
    and of a save, then, from the next launch on, at the interval at which the least work is expected to be
    lost (Young's formula), spending at most 1% of the time on saving."""
    save_seconds: Seconds = 120
    """Saving the state after the last step, or before a stop, may take this long and is tried again if it
    fails. After that ranks that were asked to stop are stopped without saving, and a job that has done all
    its steps fails; run again, it goes on from its newest checkpoint."""
    keep: Count = 3
    """Number of checkpoints that are kept; older ones are deleted."""
    memory: MemoryTier = MemoryTier()
    """Copies of each rank's state in the memory of its node."""


class Health(Section):
    """Time limits after which a node, a stalled rank or a launch counts as failed."""

    heartbeat_seconds: Seconds = 2
    """Time between two heartbeats of an agent."""
    silence_seconds: Seconds = 15
    """A node whose agent sends no heartbeat for this long counts as lost; at least twice heartbeatSeconds."""
    flap_tolerance_seconds: Annotated[int, Field(ge=0, le=86_400)] = 30
    """When ranks stall and nothing points at a fault, the driver waits this long before it restarts them: a
    link that flaps recovers within 2 to 10 s."""
    startup_seconds: Seconds = 600
    """Longest time from a launch to its first step; after it the launch counts as failed."""
    reconnect_grace_seconds: Seconds = 10
    """How long a restarted driver waits for agents to reconnect before it counts any of them as silent."""
    orphan_seconds: Seconds = 60
    """Ranks save and exit after this time without a driver, where nobody restarts it."""
    check_slots: bool = True
    """Kubernetes only: run the light node check on the node of a new slot, and start ranks there only if it
    passes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.silence_seconds < 2 * self.heartbeat_seconds:
            message = f"{self.silence_seconds} is less than twice heartbeatSeconds {self.heartbeat_seconds}"
            refuse([Problem(("silenceSeconds",), message, "one late heartbeat would count as a lost node")])
        return self


class Remediation(Section):
    """What the job may do to nodes, and how many it may give up."""

    mode: Literal["Observe", "Annotate", "Enforce"] = "Observe"
    """Observe: record bad nodes; Annotate: also set an annotation on them; Enforce: also cordon and taint
    them. The operator's own --mode is the upper limit."""
    max_nodes_per_hour: Natural = 3
    """Nodes the job may exclude per hour. At the limit it excludes no more and raises an alert."""
    max_excluded_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of spec.nodes that the job may exclude per week, but at least maxNodesPerHour nodes. At the limit
    it excludes no more and raises an alert."""


class JobSpec(Section):
    """What the job runs, on how many nodes, and how it reacts to faults."""

    nodes: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Nodes that train."""
    ranks_per_node: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes per node, one per GPU where there are GPUs."""
    spare_nodes: Annotated[
        Annotated[int, Field(ge=0, le=100_000)] | Literal["auto"], Words("a whole number >= 0, or auto")
    ] = "auto"
    """Idle nodes kept ready to replace a lost one; auto = as many as recovery.nodeFailuresPerDay calls
    for."""
    min_nodes: Annotated[int, Field(ge=1, le=100_000), Words(default="nodes")] = Field(
        default_factory=lambda fields: fields["nodes"]
    )
    """When nodes are lost and no spare is left, the job goes on with fewer nodes, down to this many."""
    suspend: bool = False
    """true: the job saves, stops its ranks and waits until this is false again. On a cluster nodes, minNodes
    and spareNodes can be changed while this is true."""
    steps: Annotated[int, Field(ge=1, le=10**9)]
    """The job is complete after this optimizer step."""
    runtime: Runtime
    """What the ranks run."""
    network: Network = Network()
    """Timeouts and settings of the communication between ranks."""
    checkpoint: Checkpoint = Checkpoint()
    """When and where the training state is saved."""
    health: Health = Health()
    """Time limits after which a node, a stalled rank or a launch counts as failed."""
    detection: Annotated[Detection, Field(json_schema_extra=without_default)] = Detection()
    """Thresholds of fault detection, and detectors that only record."""
    recovery: Recovery = Recovery()
    """Limits and times of automatic recovery, and exceptions to the recovery ladder."""
    log_rules: Annotated[list[LogRule], Field(max_length=MAX_LOG_RULES)] = Field(default_factory=list)
    """What lines of the ranks' logs and of the kernel's log mean; the first match wins, ahead of the built-in
    rules. A changed list counts at once in the driver, from the next launch on for the ranks' logs, and from
    the next start of an agent on for the kernel's log."""
    remediation: Remediation = Remediation()
    """What the job may do to nodes, and how many it may give up."""
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
    """Kubernetes only: name of the controller that manages the job; the operator ignores jobs with another
    name."""
    active_deadline_seconds: Count | None = None
    """Kubernetes only: the job fails if it is not complete this long after it began, including the time it
    was suspended; null = no limit."""
    deletion_save_seconds: Annotated[int, Field(ge=0, le=86_400)] = 120
    """Kubernetes only: how long a deleted job may take to save before its pods are deleted; 0 = it does not
    save."""
    ttl_seconds_after_finished: Natural | None = None
    """Kubernetes only: the job is deleted this long after it ended; null = it is kept."""
    scheduling: Scheduling = Scheduling()
    """Kubernetes only: how the scheduler places the slots."""
    template: Template = Template()
    """Kubernetes only: changes to the pods, in the shape of a pod template."""

    @property
    def world_size(self) -> int:
        """Ranks at full strength."""
        return self.nodes * self.ranks_per_node

    @property
    def node_counts(self) -> tuple[int, ...]:
        """Node counts between nodes and minNodes that the layout can run on, largest first."""
        return node_counts(self._size, self.runtime.megatron)

    @property
    def _size(self) -> Size:
        return Size(self.nodes, self.min_nodes, self.ranks_per_node)

    @model_validator(mode="after")
    def _check(self) -> Self:
        megatron, ranks, every = self.runtime.megatron, self.world_size, self.checkpoint.every_steps
        problems = size_problems(self._size)
        if megatron is not None:
            problems += training_problems(self._size, self.steps, megatron)
        problems += fault_problems(self.faults, ranks=ranks, steps=self.steps, every_steps=every)
        problems += override_problems(self.recovery.overrides, self.log_rules)
        refuse([*problems, *id_problems(self.log_rules)])
        if megatron is not None:
            megatron.parallelism.set_world(ranks)
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
    """What the job runs, on how many nodes, and how it reacts to faults."""
