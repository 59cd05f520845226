"""`status` of a TrainingJob: display only. Floats are strings, lists are bounded."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from megascale.job.api import Natural, NodeName, Section

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Word = Annotated[str, Field(max_length=64)]
Line = Annotated[str, Field(max_length=1024)]
PodName = Annotated[str, Field(max_length=253)]
Id = Annotated[str, Field(max_length=128)]
Generation = Annotated[int, Field(ge=0, le=2**53)]
SeenGeneration = Annotated[Generation | None, Field(description="metadata.generation that this is about.")]


def at_most(count: int) -> Any:  # noqa: ANN401
    """The bound of a list."""
    return Field(max_length=count)


class Condition(Section):
    """A metav1.Condition."""

    type: Annotated[
        str,
        Field(
            pattern=r"^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
            max_length=316,
        ),
    ]
    """What the condition is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: SeenGeneration = None
    last_transition_time: Time
    """When status last changed."""
    reason: Annotated[
        str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", min_length=1, max_length=1024)
    ]
    """Why it last changed, as one word for programs."""
    message: Annotated[str, Field(max_length=32_768)]
    """Why it last changed, for people."""


Conditions = Annotated[list[Condition] | None, at_most(16)]


class OpenIncident(Section):
    """The incident that is being dealt with."""

    id: Id
    """Its id, such as i-3."""
    reason: Line | None = None
    """What was seen."""
    action: Line | None = None
    """What is being done."""


class Incident(Section):
    """An incident that is over."""

    id: Id
    """Its id, such as i-3."""
    reason: Line | None = None
    """What was seen."""
    action: Line | None = None
    """What was done."""
    node: NodeName | None = None
    """Node at fault."""
    rank: Natural | None = None
    """Rank at fault."""
    time: Time | None = None
    """When it was detected."""
    seconds: Word | None = None
    """Fault to back at speed."""


class Alert(Section):
    """A message to the people on call."""

    reason: Line
    """What they should know."""
    time: Time | None = None
    """When it was raised."""


class Restart(Section):
    """A slot whose pod is to be replaced by a new incarnation."""

    pod: PodName
    """The pod to replace."""
    id: Id
    """Id of the effect that wants it."""


class Quarantine(Section):
    """A node that the driver wants in quarantine."""

    node: NodeName
    """The node."""
    incident: Id
    """The incident behind it."""
    reason: Line | None = None
    """What it did."""


class Requests(Section):
    """What the driver wants; the operator makes it true, or refuses."""

    slots: Natural | None = None
    """Slots that must live, at least."""
    avoid_nodes: Annotated[list[NodeName] | None, at_most(64)] = None
    """Nodes that new slots must not be on."""
    release: Annotated[list[PodName] | None, at_most(64)] = None
    """Pods that are no longer needed."""
    restart: Annotated[list[Restart] | None, at_most(64)] = None
    """Pods to replace."""
    quarantine: Annotated[list[Quarantine] | None, at_most(64)] = None
    """Nodes to quarantine."""


class Answer(Section):
    """What became of a person's order."""

    id: Id
    """Id of the order."""
    ok: bool
    """Whether it was carried out."""
    message: Line | None = None
    """What was done, or why not."""


class DriverStatus(Section):
    """What the driver says; at most every 15 s, or when something happens."""

    observed_generation: SeenGeneration = None
    job_state: Word | None = None
    """What the driver is doing."""
    state: Word | None = None
    """How the job is; completed, failed and stopped are final."""
    reason: Line | None = None
    """Why the job is in this state."""
    term: Natural | None = None
    """Number of the driver's life."""
    attempt: Natural | None = None
    """Number of the launch of the whole job."""
    step: Natural | None = None
    """Newest optimizer step."""
    steps: Natural | None = None
    """Step at which the job is complete."""
    loss: Word | None = None
    """Training loss of that step."""
    mfu: Word | None = None
    """Model FLOPs utilization."""
    goodput: Word | None = None
    """Share of the job's time that made progress."""
    restarts: Natural | None = None
    """Restarts so far."""
    checkpoint_step: Natural | None = None
    """Step of the newest durable checkpoint."""
    last_fault: Line | None = None
    """The newest fault."""
    last_fault_node: Annotated[str | None, Field(max_length=253)] = None
    """Node of the newest fault."""
    incident: OpenIncident | None = None
    """The incident that is being dealt with."""
    incidents: Annotated[list[Incident] | None, at_most(5)] = None
    """The last five incidents."""
    alerts: Annotated[list[Alert] | None, at_most(5)] = None
    """The last five alerts."""
    requests: Requests | None = None
    """What the driver wants of the operator."""
    last_command: Answer | None = None
    """What became of the last order in the annotation megascale.io/command."""
    pod: PodName | None = None
    """Pod of the driver."""
    updated_at: Time | None = None
    """When the driver last wrote this."""


class Slots(Section):
    """How many slots there are."""

    wanted: Natural | None = None
    """Slots there should be, spares included."""
    bound: Natural | None = None
    """Slots whose pod has a node."""
    ready: Natural | None = None
    """Slots whose agent runs."""


class Refusal(Section):
    """A request of the driver that the operator does not grant."""

    request: Word
    """Which request: slots, release, restart, quarantine."""
    node: Annotated[str | None, Field(max_length=253)] = None
    """The node it was about."""
    incident: Id | None = None
    """The incident behind it."""
    reason: Line
    """Why it is not granted."""
    time: Time | None = None
    """When it was refused."""


class Quarantined(Section):
    """A node that is in quarantine because of this job."""

    node: NodeName
    """The node."""
    incident: Id | None = None
    """The incident behind it."""


class OperatorStatus(Section):
    """What the operator says."""

    slots: Slots | None = None
    """How many slots there are."""
    refusals: Annotated[list[Refusal] | None, at_most(20)] = None
    """The newest requests that were not granted."""
    quarantined: Annotated[list[Quarantined] | None, at_most(64)] = None
    """Nodes in quarantine because of this job."""
    avoid: Annotated[list[NodeName] | None, at_most(64)] = None
    """Nodes that failed the check of a new slot."""
    driver_pod: PodName | None = None
    """Pod of the driver."""


class JobStatus(Section):
    """How the job is; display only."""

    observed_generation: SeenGeneration = None
    state: Word | None = None
    """The job in one word, for display; programs read conditions."""
    nodes: Word | None = None
    """Slots that are ready of those wanted, for display."""
    start_time: Time | None = None
    """When the first slot was made."""
    completion_time: Time | None = None
    """When the job ended."""
    conditions: Conditions = None
    """SlotsReady, DriverReady, Running, Recovering, Suspended, Complete, Failed."""
    driver: DriverStatus | None = None
    """What the driver says."""
    operator: OperatorStatus | None = None
    """What the operator says."""
