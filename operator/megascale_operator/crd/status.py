"""The pydantic models of a TrainingJob's `status`, for display only. Floats are strings, lists bounded."""

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
SeenGeneration = Annotated[
    Generation | None,
    Field(description="metadata.generation of the spec that this part of the status refers to."),
]


def at_most(count: int) -> Any:  # noqa: ANN401
    """Return a field constraint: the list has at most `count` entries."""
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
    """Type of the condition."""
    status: Literal["True", "False", "Unknown"]
    """Status of the condition."""
    observed_generation: SeenGeneration = None
    last_transition_time: Time
    """Time at which status last changed."""
    reason: Annotated[
        str, Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", min_length=1, max_length=1024)
    ]
    """Reason of the last change, as a word for programs."""
    message: Annotated[str, Field(max_length=32_768)]
    """Reason of the last change, as text for users."""


Conditions = Annotated[list[Condition] | None, at_most(16)]


class OpenIncident(Section):
    """The open incident."""

    id: Id
    """Id of the incident, e.g. i-3."""
    reason: Line | None = None
    """What was observed."""
    action: Line | None = None
    """Recovery action in progress."""


class Incident(Section):
    """A closed incident."""

    id: Id
    """Id of the incident, e.g. i-3."""
    reason: Line | None = None
    """What was observed."""
    action: Line | None = None
    """Recovery action that was taken."""
    node: NodeName | None = None
    """Node that caused the incident."""
    rank: Natural | None = None
    """Rank that caused the incident."""
    time: Time | None = None
    """Time of detection."""
    seconds: Word | None = None
    """Seconds from the fault until training was back at its earlier speed."""


class Alert(Section):
    """An alert to the operators of the cluster."""

    reason: Line
    """Text of the alert."""
    time: Time | None = None
    """Time at which it was raised."""


class Restart(Section):
    """A request to replace a slot's pod."""

    pod: PodName
    """Name of the pod to replace."""
    id: Id
    """Id of the request."""


class Quarantine(Section):
    """A request to quarantine a node."""

    node: NodeName
    """Name of the node."""
    incident: Id
    """Id of the incident that the node caused."""
    cause: Word | None = None
    """Cause of the incident, which decides the value of the taint and how many checks end the quarantine."""
    reason: Line | None = None
    """Reason of the incident."""


class Requests(Section):
    """Requests of the driver, which the operator fulfils or refuses."""

    slots: Natural | None = None
    """Least number of slots that must exist."""
    avoid_nodes: Annotated[list[NodeName] | None, at_most(64)] = None
    """Nodes that new slots must not be on."""
    release: Annotated[list[PodName] | None, at_most(64)] = None
    """Pods to delete, because the job no longer needs them."""
    restart: Annotated[list[Restart] | None, at_most(64)] = None
    """Pods to replace by new ones."""
    quarantine: Annotated[list[Quarantine] | None, at_most(64)] = None
    """Nodes to quarantine."""


class Answer(Section):
    """Answer to a command of a user."""

    id: Id
    """Id of the command."""
    ok: bool
    """Whether the driver accepted the command."""
    message: Line | None = None
    """Reason, if the command was not accepted."""


class DriverStatus(Section):
    """Status written by the driver: at most every 15 s, or immediately after important changes."""

    observed_generation: SeenGeneration = None
    job_state: Word | None = None
    """State of the driver's state machine."""
    state: Word | None = None
    """State of the job; completed, failed and stopped are final."""
    reason: Line | None = None
    """Reason for the state."""
    term: Natural | None = None
    """Number of the driver; every driver that takes over the job gets a higher one."""
    attempt: Natural | None = None
    """Number of the launch of the whole job."""
    step: Natural | None = None
    """Newest optimizer step."""
    steps: Natural | None = None
    """Step at which the job is complete."""
    loss: Word | None = None
    """Training loss of the newest step."""
    mfu: Word | None = None
    """Model FLOPs utilization."""
    goodput: Word | None = None
    """Share of the job's time that was productive."""
    restarts: Natural | None = None
    """Number of restarts so far."""
    checkpoint_step: Natural | None = None
    """Step of the newest durable checkpoint."""
    last_fault: Line | None = None
    """Reason of the newest incident."""
    last_fault_node: Annotated[str | None, Field(max_length=253)] = None
    """Node that caused the newest incident."""
    incident: OpenIncident | None = None
    """The open incident."""
    incidents: Annotated[list[Incident] | None, at_most(5)] = None
    """The last five closed incidents."""
    alerts: Annotated[list[Alert] | None, at_most(5)] = None
    """The last five alerts."""
    requests: Requests | None = None
    """Requests of the driver to the operator."""
    last_command: Answer | None = None
    """Answer to the last command in the annotation megascale.io/command."""
    pod: PodName | None = None
    """Name of the driver's pod."""
    updated_at: Time | None = None
    """Time at which the driver last wrote its status."""


class Slots(Section):
    """Numbers of slots."""

    wanted: Natural | None = None
    """Number of wanted slots, spares included."""
    bound: Natural | None = None
    """Number of slots whose pod is scheduled to a node."""
    ready: Natural | None = None
    """Number of slots whose agent runs."""


class Refusal(Section):
    """A request of the driver that the operator refused."""

    request: Word
    """Kind of request: slots, release, restart or quarantine."""
    node: Annotated[str | None, Field(max_length=253)] = None
    """Name of the node that the request concerned."""
    incident: Id | None = None
    """Id of the incident that led to the request."""
    reason: Line
    """Reason of the refusal."""
    time: Time | None = None
    """Time of the refusal."""


class Quarantined(Section):
    """A quarantine that the operator granted to this job; the node's annotation says if it still holds."""

    node: NodeName
    """Name of the node."""
    incident: Id | None = None
    """Id of the incident that the node caused."""
    time: Time | None = None
    """Time of the answer."""


class OperatorStatus(Section):
    """Status written by the operator for the driver."""

    slots: Slots | None = None
    """Numbers of slots."""
    refusals: Annotated[list[Refusal] | None, at_most(80)] = None
    """Refused requests, oldest first: the current ones, and the last 20 of quarantines requested before."""
    quarantined: Annotated[list[Quarantined] | None, at_most(64)] = None
    """The last quarantines that the operator granted to this job, oldest first."""
    avoid: Annotated[list[NodeName] | None, at_most(64)] = None
    """Nodes that new slots are not placed on: those of the driver's avoidNodes, and those that failed the
    check of a new slot within the hour."""
    driver_pod: PodName | None = None
    """Name of the driver's pod."""


class JobStatus(Section):
    """Status of the job, for display only."""

    observed_generation: SeenGeneration = None
    state: Word | None = None
    """The job in one word, for display; programs read conditions."""
    nodes: Word | None = None
    """Ready and wanted slots, for display."""
    start_time: Time | None = None
    """Time at which the first slot was created."""
    completion_time: Time | None = None
    """Time at which the job ended."""
    conditions: Conditions = None
    """Conditions: SpecValid, SlotsReady, DriverReady, Running, Recovering, Suspended, Complete and Failed."""
    driver: DriverStatus | None = None
    """Status written by the driver."""
    operator: OperatorStatus | None = None
    """Status written by the operator."""
