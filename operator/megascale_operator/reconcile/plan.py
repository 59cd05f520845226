"""The result of a reconcile: API writes in ordered steps, Events, and when to reconcile again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from megascale_operator.kube.resources import Obj, Resource


@dataclass(frozen=True, slots=True)
class Create:
    """Create an object; if it already exists, do nothing."""

    resource: Resource
    body: Obj


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply; `body` holds exactly the fields that the operator owns."""

    resource: Resource
    body: Obj
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Patch:
    """Patch an object: a JSON patch if `patch` is a list, else a merge patch."""

    resource: Resource
    namespace: str
    name: str
    patch: Any


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object if it has that uid; `grace_s` None uses the object's own grace period."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    grace_s: int | None = None


@dataclass(frozen=True, slots=True)
class DeletePods:
    """Delete all pods that match the label selector, in one request."""

    namespace: str
    selector: str


Action = Create | Apply | Patch | Delete | DeletePods


@dataclass(frozen=True, slots=True)
class PlannedEvent:
    """An Event to record on the reconciled object."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """Actions to execute concurrently; if a `needed` step fails, the following steps are not executed."""

    actions: tuple[Action, ...]
    needed: bool = False


@dataclass(slots=True)
class Plan:
    """Writes and Events to make now.

    Attributes:
        requeue_s: seconds after which to reconcile again even if nothing changes, None for no limit.
    """

    steps: list[Step] = field(default_factory=list)
    events: list[PlannedEvent] = field(default_factory=list)
    requeue_s: float | None = None

    def add_step(self, *actions: Action, needed: bool = False) -> None:
        """Append a step, unless it has no actions."""
        if actions:
            self.steps.append(Step(actions, needed))

    def requeue_after(self, seconds: float) -> None:
        """Reconcile again after at most that time."""
        self.requeue_s = seconds if self.requeue_s is None else min(self.requeue_s, seconds)

    @property
    def actions(self) -> list[Action]:
        return [action for step in self.steps for action in step.actions]
