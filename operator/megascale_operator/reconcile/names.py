"""Names, labels and annotations of Kubernetes objects (docs/kubernetes.md, "Names")."""

from __future__ import annotations

import hashlib
from typing import Final

OPERATOR: Final = "megascale-operator"
"""Name of the field manager, Lease and ServiceAccount, and value of the label `managed-by`."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
SELECTOR: Final = f"{MANAGED_BY}={OPERATOR}"
JOB: Final = "megascale.io/job"
ROLE: Final = "megascale.io/role"
SLOT: Final = "megascale.io/slot"
CHECK: Final = "megascale.io/check"
INCARNATION: Final = "megascale.io/incarnation"
DRIVER: Final = "megascale.io/driver"
"""Annotation on slot pods: digest of the `driver.json` that was current when the pod was last written."""
HASH: Final = "megascale.io/hash"
"""Annotation on applied objects: digest of the applied configuration, to skip writes that change nothing."""
FINALIZER: Final = "megascale.io/save-before-delete"
FORCE_DELETE: Final = "megascale.io/force-delete"
COMMAND: Final = "megascale.io/command"
QUARANTINE: Final = "megascale.io/quarantine"
QUARANTINE_HISTORY: Final = "megascale.io/quarantine-history"
TAINT: Final = "megascale.io/quarantined"
CA_SECRET: Final = "megascale-ca"  # noqa: S105 - the name of it
RUN: Final = "/run/megascale"
HOSTNAME_KEY: Final = "kubernetes.io/hostname"


def slot_pod(job: str, slot: int, incarnation: int) -> str:
    return f"{job}-{slot}-{incarnation}"


def driver_pod(job: str, incarnation: int) -> str:
    return f"{job}-driver-{incarnation}"


def incarnation_of(pod: str) -> int:
    """Return the number at the end of a pod's name, -1 if there is none."""
    number = pod.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def check_pod(check: str, node: str) -> str:
    """Return the prefix of a check pod's name; it has a hash of the node, whose name may be too long."""
    return f"{check}-{hashlib.sha256(node.encode()).hexdigest()[:10]}"


def job_map(job: str) -> str:
    return f"{job}-job"


def driver_map(job: str) -> str:
    return f"{job}-driver"


def record_map(job: str) -> str:
    return f"{job}-record"


def slots_map(job: str) -> str:
    return f"{job}-slots"


def driver_account(job: str) -> str:
    return f"{job}-driver"


def slot_account(job: str) -> str:
    return f"{job}-slot"


def server_name(job: str, namespace: str) -> str:
    """Return the DNS name in the driver's certificate."""
    return f"{job}.{namespace}.driver.megascale"


def audience(namespace: str, uid: str) -> str:
    """Return the audience of the slots' ServiceAccount tokens (docs/kubernetes.md, "Permissions")."""
    return f"megascale/{namespace}/{uid}"


def labels(job: str, role: str) -> dict[str, str]:
    return {MANAGED_BY: OPERATOR, JOB: job, ROLE: role}


def pods_selector(job: str, role: str = "") -> str:
    selector = f"{SELECTOR},{JOB}={job}"
    return f"{selector},{ROLE}={role}" if role else selector
