"""`spec.scheduling`: how a cluster places the slots of a job. Kubernetes only; ignored on a workstation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megascale.job.base import LabelKey, LabelValue, Problem, Section, refuse, repeated


class Scheduling(Section):
    """How a cluster places the slots of a job."""

    gang: Literal["none", "kueue"] = "none"
    """none: slots are placed one by one; kueue: all at once or not at all, as a Kueue pod group."""
    queue: Annotated[LabelValue, Field(min_length=1)] | None = None
    """The Kueue queue (LocalQueue of the job's namespace) that the slots wait in; needed for gang kueue."""
    topology_keys: Annotated[list[LabelKey], Field(max_length=8)] = Field(
        default_factory=lambda: ["topology.kubernetes.io/zone"]
    )
    """Node labels that say what is close together, widest first, each once: slots are preferably placed in
    one domain."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.gang == "kueue" and self.queue is None:
            hint = "name a LocalQueue of the job's namespace"
            problems.append(Problem(("queue",), "is required for gang kueue", hint))
        if self.gang == "none" and self.queue is not None:
            problems.append(Problem(("queue",), "has no meaning for gang none", "set gang to kueue"))
        refuse([*problems, *repeated("topologyKeys", "key", self.topology_keys)])
        return self
