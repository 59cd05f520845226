"""What a job's reconcile looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.defaults import DetectionDefaults
from megascale_operator.reconcile.records import Nodes, OwnedObject, PodRecord
from megascale_operator.reconcile.storage import CheckpointRoot


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator was started with.

    Attributes:
        mode: the most that may be done to nodes: Observe, Annotate or Enforce.
        checkpoint_root: for jobs that name no place for their checkpoints, None = there is none.
        detection: thresholds for what a job's spec.detection leaves out, None = there are none.
    """

    image: str
    namespace: str = "megascale-system"
    mode: str = "Observe"
    checkpoint_root: CheckpointRoot | None = None
    detection: DetectionDefaults | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """Objects of one job, as the informers have them.

    Attributes:
        pods: all of the job; nodes: of the cluster.
        things: ConfigMaps, ServiceAccounts, Role and RoleBinding by (kind, name).
        ended: pods that are gone, as last seen, until `slots.json` tells of them.
        incarnations: the highest number each slot ever had, as far as this process knows.
        ca_pem: of the CA that signs drivers; driver_crt: for the CSR that the driver published, "" if none.
        granted: nodes quarantined for this job, with the incident; refused: refusals of node care.
        slots_written_at, status_written_at: Unix seconds at which this process last wrote them.
    """

    pods: tuple[PodRecord, ...] = ()
    nodes: Nodes = field(default_factory=Nodes)
    owned: Mapping[tuple[str, str], OwnedObject] = field(default_factory=dict)
    ended: tuple[PodRecord, ...] = ()
    incarnations: Mapping[int, int] = field(default_factory=dict)
    ca_pem: str = ""
    driver_crt: str = ""
    granted: tuple[tuple[str, str], ...] = ()
    refused: tuple[Obj, ...] = ()
    slots_written_at: float = 0.0
    status_written_at: float = 0.0

    def role(self, role: str) -> list[PodRecord]:
        return [pod for pod in self.pods if pod.role == role]

    def slots_document(self, job: str) -> str:
        """`slots.json` as it stands, "" before the first."""
        owned_object = self.owned.get(("ConfigMap", f"{job}-slots"))
        return owned_object.text("slots.json") if owned_object else ""
