"""`spec.detection`: thresholds of fault detection, and detectors that only record.

The CRD has no defaults in this section: an API server would write them into the object, and then nobody could
tell a job's own values from those that the cluster's defaults may still replace.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from megascale.core.contract.vocabulary import Detector
from megascale.job.base import MAX_INT, Problem, Seconds, Section, refuse, repeated

ALL: Final = "all"
Shadowed = Literal["all", "silence", "hang", "hardware", "straggler", "numerics"]
Days90 = Annotated[int, Field(ge=1, le=90 * 86_400)]


def without_default(schema: dict[str, Any]) -> None:
    """Leave the default out of a field's JSON schema."""
    schema.pop("default", None)


def _without_defaults(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        without_default(field)


class _Tunable(Section):
    """A section whose defaults are not in the CRD."""

    model_config = ConfigDict(json_schema_extra=_without_defaults)


class HangDetection(_Tunable):
    """When a stall is suspected: no step for steps x the usual time of a step + marginSeconds."""

    steps: Annotated[float, Field(ge=1, le=1000)] = 3.0
    """Multiple of the usual time of a step, which is measured on the job's own steps."""
    margin_seconds: Annotated[int, Field(ge=0, le=86_400)] = 10
    """Time added to steps x the usual time of a step."""


class StragglerDetection(_Tunable):
    """When a rank counts as slow."""

    slowdown: Annotated[float, Field(ge=0.01, le=10)] = 0.05
    """A rank that computes slower than its peers by more than this share is suspected: 0.05 = 5% slower."""


class NumericsDetection(_Tunable):
    """Reaction to wrong numbers: NaN, or jumps of the loss or of the gradient norm."""

    distrust_steps: Annotated[int, Field(ge=0, le=MAX_INT)] = 50
    """When wrong numbers appear within so many steps after a checkpoint was loaded, that checkpoint is not
    used again either."""


class Blame(_Tunable):
    """When a node that keeps failing is replaced instead of restarted. A failure adds 0.5 to 3 to the score
    of its node, by cause."""

    limit: Annotated[float, Field(ge=0.5, le=100)] = 2.5
    """Score above which the node is replaced."""
    half_life_seconds: Days90 = 21_600
    """Time in which the score decays to half."""


class Lemon(_Tunable):
    """When a node that has failed often is replaced, even if its failures are far apart."""

    incidents: Annotated[int, Field(ge=2, le=1000)] = 4
    """Incidents within windowSeconds at which the node is replaced; those within an hour count as one."""
    window_seconds: Days90 = 1_209_600
    """Time within which they are counted."""


class Correlation(_Tunable):
    """Time windows within which events are attributed to one fault. They are independent of each other:
    windowSeconds says which events are one fault, beforeSeconds and afterSeconds which exits it explains."""

    window_seconds: Seconds = 60
    """Hardware events, log lines and losses of nodes that are closer than this are treated as one fault. A
    stall is attributed to a hardware event, and an exit to a log line about code, data or memory, at most
    this long before it."""
    before_seconds: Seconds = 600
    """An exit is attributed to a hardware event, or log line about hardware, of its node at most this long
    before it."""
    after_seconds: Seconds = 300
    """An exit is attributed to a hardware event, or log line about hardware, of its node at most this long
    after it."""
    shared_cause_nodes: Annotated[int, Field(ge=2, le=100_000)] = 3
    """When so many nodes of one network domain, or twice as many anywhere, are lost within windowSeconds, a
    shared cause is assumed, such as a switch, and no node is blamed."""


class NetworkAlerts(_Tunable):
    """When network alerts of a node (link flaps, retransmissions) lead to its replacement."""

    limit: Annotated[int, Field(ge=1, le=256)] = 2
    """Alerts within windowSeconds at which the node is replaced."""
    window_seconds: Seconds = 300
    """Time within which they are counted."""


class Detection(_Tunable):
    """Thresholds of fault detection. They can be changed while the job runs, without a restart of its
    ranks."""

    shadow: Annotated[list[Shadowed], Field(max_length=len(Detector))] = Field(default_factory=list)
    """Detectors in shadow mode: they record what they find and what they would do, and do nothing. silence:
    nodes without heartbeats; hang: stalls; hardware: hardware events and log lines; straggler: slow ranks;
    numerics: wrong numbers; all: all of them. Exits of ranks are always acted on."""
    hang: HangDetection = HangDetection()
    """When a stall is suspected."""
    straggler: StragglerDetection = StragglerDetection()
    """When a rank counts as slow."""
    numerics: NumericsDetection = NumericsDetection()
    """Reaction to wrong numbers."""
    blame: Blame = Blame()
    """When a node that keeps failing is replaced instead of restarted."""
    lemon: Lemon = Lemon()
    """When a node that has failed often is replaced."""
    correlation: Correlation = Correlation()
    """Time windows within which events are attributed to one fault."""
    network_alerts: NetworkAlerts = NetworkAlerts()
    """When network alerts of a node lead to its replacement."""

    @property
    def shadowed(self) -> tuple[Detector, ...]:
        """Detectors in shadow mode."""
        return tuple(name for name in Detector if name in self.shadow or ALL in self.shadow)

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = repeated("shadow", "detector", self.shadow)
        if ALL in self.shadow and len(self.shadow) > 1:
            problems.append(Problem(("shadow",), "has all beside others", "write shadow: [all]"))
        refuse(problems)
        return self
