"""A TrainingJob as decisions see it: the checked spec, what the driver says, what was said before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from megascale.driver.policy import spare_nodes
from megascale.job.api import JobSpec, TrainingJob
from megascale_operator.kube.clock import unix_s
from megascale_operator.kube.resources import TRAINING_JOBS, Obj
from megascale_operator.reconcile import names

FINAL_STATES: Final = ("completed", "failed", "stopped")
_MOST: Final = 64
"""Entries of each list of requests that are read (docs/kubernetes.md)."""
_SLOTS_BEYOND: Final = 64


@dataclass(frozen=True, slots=True)
class Job:
    """One job.

    Attributes:
        obj: the object; manifest: the same, checked, with defaults filled in.
    """

    obj: Obj
    manifest: TrainingJob

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
    def generation(self) -> int:
        return int(self.obj["metadata"].get("generation", 0))

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
        """`status.driver`, {} before the driver wrote it."""
        return self.status.get("driver") or {}

    @property
    def final_state(self) -> str:
        """completed, failed or stopped once the driver said so, else ""."""
        state = str(self.driver.get("state") or "")
        return state if state in FINAL_STATES else ""

    @property
    def says_suspended(self) -> bool:
        """Whether the driver has saved and let its ranks go, for the spec as it is now."""
        current = int(self.driver.get("observedGeneration") or 0) >= self.generation
        return current and self.driver.get("jobState") == "suspended"

    @property
    def driver_wrote_at(self) -> float:
        """Unix seconds of the driver's last word, 0 before the first."""
        return unix_s(self.driver.get("updatedAt"))

    @property
    def started_at(self) -> float:
        """Unix seconds at which its first pods were made, 0 before."""
        return unix_s(self.status.get("startTime"))

    @property
    def slots_by_spec(self) -> int:
        """Nodes and spares."""
        return self.spec.nodes + spare_nodes(self.manifest)

    @property
    def most_slots(self) -> int:
        """What a driver can get at most: replacements may overlap with what they replace."""
        return self.slots_by_spec + _SLOTS_BEYOND

    def condition(self, kind: str) -> Obj:
        """The condition of that type as last written, {} if never."""
        found = self.status.get("conditions") or ()
        return next((one for one in found if one.get("type") == kind), {})

    def holds(self, kind: str) -> bool:
        return bool(self.condition(kind).get("status") == "True")

    def owner(self) -> list[Obj]:
        """ownerReferences of everything made for it."""
        reference = {
            "apiVersion": TRAINING_JOBS.api_version, "kind": TRAINING_JOBS.kind, "name": self.name,
            "uid": self.uid, "controller": True, "blockOwnerDeletion": True,
        }  # fmt: skip
        return [reference]

    def metadata(self, name: str, role: str) -> Obj:
        """Metadata of an object made for it."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": names.labels(self.name, role),
            "ownerReferences": self.owner(),
        }


@dataclass(frozen=True, slots=True)
class QuarantineRequest:
    """The driver convicted a node."""

    node: str
    incident: str
    reason: str


@dataclass(frozen=True, slots=True)
class Requests:
    """`status.driver.requests`; `slots` is None until the driver has written any."""

    slots: int | None = None
    avoid: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    restart: tuple[tuple[str, str], ...] = ()
    quarantine: tuple[QuarantineRequest, ...] = ()


def granted_to(job: Job) -> frozenset[tuple[str, str]]:
    """(node, incident) of the quarantines that its status lists as granted."""
    listed = (job.status.get("operator") or {}).get("quarantined") or ()
    return frozenset((str(one["node"]), str(one.get("incident", ""))) for one in listed)


def requests_of(job: Job) -> Requests:
    """The driver's requests; malformed entries are ignored."""
    stated: Any = job.driver.get("requests")
    if not isinstance(stated, dict):
        return Requests()
    slots = stated.get("slots")
    if job.driver.get("jobState") == "suspended":
        # Said before the job was resumed, perhaps with other sizes.
        slots = None
    return Requests(
        slots=slots if isinstance(slots, int) and slots >= 0 else None,
        avoid=tuple(sorted(_texts(stated.get("avoidNodes")))),
        release=_texts(stated.get("release")),
        restart=tuple(
            (str(one["pod"]), str(one.get("id", ""))) for one in _entries(stated, "restart", "pod")
        ),
        quarantine=tuple(
            QuarantineRequest(str(one["node"]), str(one.get("incident", "")), str(one.get("reason", "")))
            for one in _entries(stated, "quarantine", "node")
        ),
    )


def _texts(value: Any) -> tuple[str, ...]:  # noqa: ANN401 - what a driver wrote
    return tuple(str(one) for one in (value or ())[:_MOST]) if isinstance(value, list) else ()


def _entries(stated: dict[str, Any], key: str, needed: str) -> list[dict[str, Any]]:
    entries = stated.get(key)
    if not isinstance(entries, list):
        return []
    return [one for one in entries[:_MOST] if isinstance(one, dict) and one.get(needed)]
