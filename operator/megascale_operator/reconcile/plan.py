"""What a reconcile asks for. Steps are done one after the other, the actions of a step side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from megascale_operator.kube.resources import Obj, Resource


@dataclass(frozen=True, slots=True)
class Create:
    """An object that is made once; that it exists already is as good."""

    resource: Resource
    body: Obj


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of exactly the fields that are ours."""

    resource: Resource
    body: Obj
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Patch:
    """A merge patch, or a JSON patch if it is a list."""

    resource: Resource
    namespace: str
    name: str
    patch: Any


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of the very object with that uid; `grace_s` None = as long as the object itself says."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    grace_s: int | None = None


@dataclass(frozen=True, slots=True)
class DeletePods:
    """All pods with these labels, in one request."""

    namespace: str
    selector: str


Action = Create | Apply | Patch | Delete | DeletePods


@dataclass(frozen=True, slots=True)
class Note:
    """An Event on the object."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """Actions side by side; after a `needed` step that failed nothing more is done."""

    actions: tuple[Action, ...]
    needed: bool = False


@dataclass(slots=True)
class Plan:
    """What to do now, what to tell, and when to look again even if nothing happens."""

    steps: list[Step] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    requeue_s: float | None = None

    def then(self, *actions: Action, needed: bool = False) -> None:
        """One more step, if there is anything in it."""
        if actions:
            self.steps.append(Step(actions, needed))

    def again(self, seconds: float) -> None:
        """Look again in that time at the latest."""
        self.requeue_s = seconds if self.requeue_s is None else min(self.requeue_s, seconds)

    @property
    def actions(self) -> list[Action]:
        return [action for step in self.steps for action in step.actions]
