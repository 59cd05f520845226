"""Gang scheduling: one function per back end changes pods so that all slots of a job are placed together."""

from __future__ import annotations

from typing import Final, Protocol

from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.job import Job

_KUEUE: Final = "kueue.x-k8s.io"


class Gang(Protocol):
    """Changes a slot pod in place, before it is created."""

    def decorate(self, pod: Obj, job: Job) -> None: ...


class NoGang:
    """Slots are placed one by one."""

    def decorate(self, pod: Obj, job: Job) -> None:
        """Leave the pod as it is."""


class KueuePodGroup:
    """All slots of a job are one pod group of a Kueue queue.

    Kueue's webhook gates the pods until the whole group fits its quota. A pod that replaces one of the group
    has the same group name and is admitted in its place.
    """

    def decorate(self, pod: Obj, job: Job) -> None:
        """Labels and annotations of a plain-pod group."""
        meta = pod["metadata"]
        meta["labels"] |= {
            f"{_KUEUE}/queue-name": job.spec.scheduling.queue or "",
            f"{_KUEUE}/pod-group-name": job.name,
        }
        meta["annotations"] |= {f"{_KUEUE}/pod-group-total-count": str(job.slots_by_spec)}


BACK_ENDS: Final[dict[str, Gang]] = {"none": NoGang(), "kueue": KueuePodGroup()}


def gang_of(job: Job) -> Gang:
    """What `spec.scheduling.gang` names."""
    return BACK_ENDS[job.spec.scheduling.gang]
