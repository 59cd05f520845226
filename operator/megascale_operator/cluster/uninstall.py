"""Uninstallation: jobs first, then CRDs, the operator last, because jobs need it to save."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from megascale.errors import MegascaleError, UnreachableError
from megascale_operator.cluster.kubectl import Kubectl
from megascale_operator.cluster.manifests import CRDS, NAMESPACE, OPERATOR, Manifests
from megascale_operator.reconcile.names import FINALIZER, QUARANTINE

Report = Callable[[str], None]
_JOBS: Final = "trainingjobs.megascale.io"


def jobs(kubectl: Kubectl) -> Sequence[dict[str, Any]]:
    """Return all TrainingJobs of the cluster."""
    return kubectl.items(_JOBS, "--all-namespaces")


def quarantined(kubectl: Kubectl) -> list[str]:
    """Return the names of the nodes with a quarantine annotation."""
    nodes = kubectl.items("nodes")
    return [
        node["metadata"]["name"]
        for node in nodes
        if QUARANTINE in (node["metadata"].get("annotations") or {})
    ]


def uninstall(kubectl: Kubectl, manifests: Manifests, drain_s: int, report: Report) -> None:
    """Delete all jobs, the CRDs and the operator.

    Args:
        drain_s: seconds that jobs may take to save; after that their finalizers are removed.
        report: called with each step, for display.

    Raises:
        MegascaleError: a kubectl command failed.
    """
    _drain(kubectl, drain_s, report)
    for job in jobs(kubectl):
        _strip(kubectl, job, report)
    report("deleting the CRDs")
    kubectl.run("delete", "crd", *CRDS, "--ignore-not-found", "--timeout=60s")
    report("deleting the operator")
    everything = manifests.rendered(kubectl, "production", "Enforce", None)
    kubectl.run("delete", "--ignore-not-found", "--wait=false", "--filename=-", stdin=everything)


def _drain(kubectl: Kubectl, drain_s: int, report: Report) -> None:
    found = jobs(kubectl)
    if not found:
        return
    report(f"deleting {len(found)} job{'s' if len(found) > 1 else ''}")
    kubectl.run("delete", _JOBS, "--all", "--all-namespaces", "--wait=false")
    if not _operator_runs(kubectl):
        report("the operator is not running: jobs are not saved")
        return
    report(f"waiting up to {drain_s} s for them to save")
    try:
        target = (_JOBS, "--all", "--all-namespaces", f"--timeout={drain_s}s")
        kubectl.run("wait", "--for=delete", *target, timeout_s=drain_s + 30.0)
    except UnreachableError:
        raise
    except MegascaleError as error:
        # kubectl fails if no job was left when the wait began, and if some are left after the timeout.
        report(str(error))


def _operator_runs(kubectl: Kubectl) -> bool:
    deployment = kubectl.get("deployment", OPERATOR, f"--namespace={NAMESPACE}")
    return bool(deployment.get("status", {}).get("availableReplicas"))


def _strip(kubectl: Kubectl, job: dict[str, Any], report: Report) -> None:
    """Remove the operator's finalizer from a job and keep all others."""
    meta = job["metadata"]
    rest = [name for name in meta.get("finalizers", ()) if name != FINALIZER]
    report(f"{meta['namespace']}/{meta['name']} was not saved in time: removing its finalizer")
    patch = {"metadata": {"finalizers": rest, "resourceVersion": meta["resourceVersion"]}}
    target = (_JOBS, meta["name"], f"--namespace={meta['namespace']}")
    kubectl.run("patch", *target, "--type=merge", f"--patch={json.dumps(patch)}")
