"""`spec.detection`: when something counts as a fault, and which detectors act on what they find.

The CRD has no defaults in this section: an API server would write them into the object, and then nobody could
tell a job's own values from those that the cluster's defaults may still replace.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from megascale.core.contract.policy import DETECTORS, Detector
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
    """Multiple of the usual time of a step, learnt from the job's own steps."""
    margin_seconds: Annotated[int, Field(ge=0, le=86_400)] = 10
    """Time added to it."""


class StragglerDetection(_Tunable):
    """When a rank counts as slow."""

    slowdown: Annotated[float, Field(ge=0.01, le=10)] = 0.05
    """How much slower than its peers a rank computes before it is suspected: 0.05 = by 5%."""


class NumericsDetection(_Tunable):
    """What wrong numbers (NaN, jumps of loss or gradient norm) say of a checkpoint."""

    distrust_steps: Annotated[int, Field(ge=0, le=MAX_INT)] = 50
    """Wrong numbers within so many steps of a checkpoint that was loaded discredit that checkpoint too."""


class Blame(_Tunable):
    """When a node that keeps failing is replaced instead of restarted. A failure adds 0.5 to 3 to the score
    of its node, by cause."""

    limit: Annotated[float, Field(ge=0.5, le=100)] = 2.5
    """Score above which the node is replaced."""
    half_life_seconds: Days90 = 21_600
    """The score halves in this time."""


class Lemon(_Tunable):
    """When a node is given up because of how often it failed, however long ago the last time was."""

    incidents: Annotated[int, Field(ge=2, le=1000)] = 4
    """Incidents within windowSeconds at which the node is replaced; those within an hour count as one."""
    window_seconds: Days90 = 1_209_600
    """Time within which they are counted."""


class Correlation(_Tunable):
    """Which events belong to one fault."""

    window_seconds: Seconds = 60
    """Events closer than this are one fault, nodes lost within it may share a cause."""
    before_seconds: Seconds = 600
    """A hardware event or log line this long before an exit explains the exit."""
    after_seconds: Seconds = 300
    """A hardware event or log line this long after an exit explains the exit."""
    shared_cause_nodes: Annotated[int, Field(ge=2, le=100_000)] = 3
    """So many nodes of one network domain lost within windowSeconds, or twice as many anywhere, share a
    cause: none of them is blamed."""


class NetworkAlerts(_Tunable):
    """When network alerts of a node (link flaps, retransmissions) lead to its replacement."""

    limit: Annotated[int, Field(ge=1, le=256)] = 2
    """Alerts within windowSeconds at which the node is replaced."""
    window_seconds: Seconds = 300
    """Time within which they are counted."""


class Detection(_Tunable):
    """When something counts as a fault. Can be changed while the job runs; ranks go on."""

    shadow: Annotated[list[Shadowed], Field(max_length=len(DETECTORS))] = Field(default_factory=list)
    """Detectors in shadow mode: what they find and would do is recorded, and nothing is done. silence: nodes
    not heard of; hang: stalls; hardware: hardware events and log lines; straggler: slow ranks; numerics:
    wrong numbers; all: all of them. Exits of ranks are always acted on."""
    hang: HangDetection = HangDetection()
    """When a stall is suspected."""
    straggler: StragglerDetection = StragglerDetection()
    """When a rank counts as slow."""
    numerics: NumericsDetection = NumericsDetection()
    """What wrong numbers say of a checkpoint."""
    blame: Blame = Blame()
    """When a node that keeps failing is replaced instead of restarted."""
    lemon: Lemon = Lemon()
    """When a node is given up because of how often it failed."""
    correlation: Correlation = Correlation()
    """Which events belong to one fault."""
    network_alerts: NetworkAlerts = NetworkAlerts()
    """When network alerts of a node lead to its replacement."""

    @property
    def shadowed(self) -> tuple[Detector, ...]:
        """Detectors in shadow mode."""
        return tuple(name for name in DETECTORS if name in self.shadow or ALL in self.shadow)

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = repeated("shadow", "detector", self.shadow)
        if ALL in self.shadow and len(self.shadow) > 1:
            problems.append(Problem(("shadow",), "has all beside others", "write shadow: [all]"))
        refuse(problems)
        return self
