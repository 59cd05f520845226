"""A TrainingJob as the reconcile functions use it: the validated spec, and the parsed status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from megascale.core.api import FinishState
from megascale.driver.policy import spare_nodes
from megascale.job.api import JobSpec, TrainingJob
from megascale_operator.kube.clock import unix_s
from megascale_operator.kube.resources import TRAINING_JOBS, Obj
from megascale_operator.reconcile import names
from megascale_operator.reconcile.invalid_spec import InvalidSpec

FINAL_STATES: Final = tuple(FinishState)
_MAX_REQUESTS: Final = 64
"""Entries read of each list in `status.driver.requests` (docs/kubernetes.md, "Slot requests")."""
_EXTRA_SLOTS: Final = 64


@dataclass(frozen=True, slots=True)
class Job:
    """One TrainingJob.

    Attributes:
        obj: the object as read from the API server.
        manifest: the validated manifest with defaults.
        invalid: why the newest spec is refused, None if it is valid. `obj["spec"]` and `manifest` are then
            those of the last valid spec.
    """

    obj: Obj
    manifest: TrainingJob
    invalid: InvalidSpec | None = None

    @property
    def name(self) -> str:
        return self.manifest.metadata.name

    @property
    def namespace(self) -> str:
        return str(self.obj["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.obj["metadata"]["uid"])

    @property
    def spec(self) -> JobSpec:
        return self.manifest.spec

    @property
    def newest_generation(self) -> int:
        """`metadata.generation`."""
        return int(self.obj["metadata"].get("generation", 0))

    @property
    def generation(self) -> int:
        """The generation of the spec in use: the newest one, unless that is invalid."""
        return self.invalid.last_valid if self.invalid else self.newest_generation

    @property
    def annotations(self) -> dict[str, str]:
        found: dict[str, str] = self.obj["metadata"].get("annotations") or {}
        return found

    @property
    def status(self) -> Obj:
        found: Obj = self.obj.get("status") or {}
        return found

    @property
    def driver(self) -> Obj:
        """`status.driver`, {} until the driver has written it."""
        return self.status.get("driver") or {}

    @property
    def final_state(self) -> str:
        """The driver's final state: completed, failed or stopped; "" while there is none."""
        state = str(self.driver.get("state") or "")
        return state if state in FINAL_STATES else ""

    @property
    def driver_suspended(self) -> bool:
        """Whether the driver has saved and stopped its ranks for the current generation of the spec."""
        current = int(self.driver.get("observedGeneration") or 0) >= self.generation
        return current and self.driver.get("jobState") == "suspended"

    @property
    def driver_updated_at(self) -> float:
        """Unix seconds of the driver's last status update, 0 if there was none."""
        return unix_s(self.driver.get("updatedAt"))

    @property
    def started_at(self) -> float:
        """Unix seconds at which the first slot pods were created, 0 before."""
        return unix_s(self.status.get("startTime"))

    @property
    def slots_by_spec(self) -> int:
        """Number of nodes and spare nodes."""
        return self.spec.nodes + spare_nodes(self.manifest)

    @property
    def max_slots(self) -> int:
        """Most slots a driver can request; replacements may overlap with the pods they replace."""
        return self.slots_by_spec + _EXTRA_SLOTS

    def condition(self, kind: str) -> Obj:
        """Return the condition of that type in the status, {} if there is none."""
        found = self.status.get("conditions") or ()
        return next((one for one in found if one.get("type") == kind), {})

    def holds(self, kind: str) -> bool:
        return bool(self.condition(kind).get("status") == "True")

    def owner(self) -> list[Obj]:
        """Return the ownerReferences of objects created for the job."""
        reference = {
            "apiVersion": TRAINING_JOBS.api_version, "kind": TRAINING_JOBS.kind, "name": self.name,
            "uid": self.uid, "controller": True, "blockOwnerDeletion": True,
        }  # fmt: skip
        return [reference]

    def metadata(self, name: str, role: str) -> Obj:
        """Return the metadata of an object created for the job."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": names.labels(self.name, role),
            "ownerReferences": self.owner(),
        }


@dataclass(frozen=True, slots=True)
class QuarantineRequest:
    """The driver's request to quarantine a node."""

    node: str
    incident: str
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Requests:
    """`status.driver.requests`.

    Attributes:
        slots: number of slots, None if the driver has not requested any.
        avoid: names of nodes for new pods to avoid.
        release: names of pods to delete.
        restart: (pod, request id) of pods to replace on the same node.
    """

    slots: int | None = None
    avoid: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    restart: tuple[tuple[str, str], ...] = ()
    quarantine: tuple[QuarantineRequest, ...] = ()


def granted_to(job: Job) -> frozenset[tuple[str, str]]:
    """Return (node, incident) of the quarantines that the job's status lists as granted."""
    listed = (job.status.get("operator") or {}).get("quarantined") or ()
    return frozenset((str(one["node"]), str(one.get("incident", ""))) for one in listed)


def requests_of(job: Job) -> Requests:
    """Parse the driver's requests; malformed entries are ignored."""
    stated: Any = job.driver.get("requests")
    if not isinstance(stated, dict):
        return Requests()
    slots = stated.get("slots")
    if job.driver.get("jobState") == "suspended":
        # Written before the job was resumed, when spec.nodes may have been different.
        slots = None
    return Requests(
        slots=slots if isinstance(slots, int) and slots >= 0 else None,
        avoid=tuple(sorted(_texts(stated.get("avoidNodes")))),
        release=_texts(stated.get("release")),
        restart=tuple(
            (str(one["pod"]), str(one.get("id", ""))) for one in _entries(stated, "restart", "pod")
        ),
        quarantine=tuple(
            QuarantineRequest(
                str(one["node"]),
                *(str(one.get(key) or "") for key in ("incident", "reason", "cause")),
            )
            for one in _entries(stated, "quarantine", "node")
        ),
    )


def _texts(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - unvalidated JSON
    return tuple(str(one) for one in (value or ())[:_MAX_REQUESTS]) if isinstance(value, list) else ()


def _entries(stated: dict[str, Any], key: str, needed: str) -> list[dict[str, Any]]:
    entries = stated.get(key)
    if not isinstance(entries, list):
        return []
    return [one for one in entries[:_MAX_REQUESTS] if isinstance(one, dict) and one.get(needed)]
