"""The inputs of a job's reconcile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from megascale_operator.kube.resources import Obj
from megascale_operator.reconcile.defaults import DetectionDefaults
from megascale_operator.reconcile.records import Nodes, OwnedObject, PodRecord
from megascale_operator.reconcile.storage import CheckpointRoot


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's settings.

    Attributes:
        image: of driver, slot and check pods, unless a job sets another.
        namespace: the operator's own.
        mode: the strongest action on nodes: Observe, Annotate or Enforce.
        checkpoint_root: storage for jobs without `checkpoint.uri`, None for none.
        detection: defaults of fields that a job's `spec.detection` does not set, None for none.
    """

    image: str
    namespace: str = "megascale-system"
    mode: str = "Observe"
    checkpoint_root: CheckpointRoot | None = None
    detection: DetectionDefaults | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """The cached objects of one job.

    Attributes:
        pods: pods of the job.
        nodes: nodes that the pods run on.
        owned: ConfigMaps, ServiceAccounts, Role and RoleBinding by (kind, name).
        ended: last records of deleted slot pods that `slots.json` does not list as gone yet.
        incarnations: the highest incarnation of each slot that this process has seen.
        ca_pem: certificate of the CA that signs driver certificates.
        driver_crt: certificate for the CSR that the driver published, "" if there is none.
        granted: (node, incident) of the quarantines granted to the job.
        refused: refused quarantine requests, as in `status.operator.refusals` but without `time`.
        slots_written_at: Unix seconds of this process' last write of `slots.json`.
        status_written_at: Unix seconds of its last write of the status.
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
        """Return the current `slots.json`, "" if there is none yet."""
        owned_object = self.owned.get(("ConfigMap", f"{job}-slots"))
        return owned_object.text("slots.json") if owned_object else ""
