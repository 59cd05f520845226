"""Gang scheduling: each back end changes the slot pods so that all of a job's slots are placed together."""

from __future__ import annotations

from typing import Final, Protocol

from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.job import Job

_KUEUE: Final = "kueue.x-k8s.io"


class Gang(Protocol):
    """A gang scheduling back end."""

    def decorate(self, pod: Obj, job: Job) -> None:
        """Change a slot pod in place before it is created."""
        ...


class NoGang:
    """No gang scheduling: slots are placed one by one."""

    def decorate(self, pod: Obj, job: Job) -> None:
        """Leave the pod as it is."""


class KueuePodGroup:
    """The slots of a job form one Kueue pod group.

    Kueue gates the pods until the whole group fits the queue's quota. A replacement pod has the same group
    name and is admitted in place of the pod that it replaces.
    """

    def decorate(self, pod: Obj, job: Job) -> None:
        """Add the labels and annotations of a Kueue plain pod group."""
        meta = pod["metadata"]
        meta["labels"] |= {
            f"{_KUEUE}/queue-name": job.spec.scheduling.queue or "",
            f"{_KUEUE}/pod-group-name": job.name,
        }
        meta["annotations"] |= {f"{_KUEUE}/pod-group-total-count": str(job.slots_by_spec)}


BACK_ENDS: Final[dict[str, Gang]] = {"none": NoGang(), "kueue": KueuePodGroup()}


def gang_of(job: Job) -> Gang:
    """Return the back end that `spec.scheduling.gang` names."""
    return BACK_ENDS[job.spec.scheduling.gang]
