"""Taking the operator off a cluster: jobs, their finalizers, CRDs, the operator last: jobs can save."""

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
    """Every TrainingJob of the cluster."""
    return kubectl.items(_JOBS, "--all-namespaces")


def quarantined(kubectl: Kubectl) -> list[str]:
    """Nodes that the operator has marked."""
    nodes = kubectl.items("nodes")
    return [
        node["metadata"]["name"]
        for node in nodes
        if QUARANTINE in (node["metadata"].get("annotations") or {})
    ]


def uninstall(kubectl: Kubectl, manifests: Manifests, drain_s: int, report: Report) -> None:
    """Every job is deleted.

    Args:
        drain_s: how long jobs may take to save; their finalizers are taken off after it.

    Raises:
        MegascaleError: kubectl refused.
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
        report("the operator does not run: jobs cannot save")
        return
    report(f"waiting up to {drain_s} s for them to save")
    try:
        target = (_JOBS, "--all", "--all-namespaces", f"--timeout={drain_s}s")
        kubectl.run("wait", "--for=delete", *target, timeout_s=drain_s + 30.0)
    except UnreachableError:
        raise
    except MegascaleError as error:
        # none left when the wait began, or some left when it ended: what is there is looked at next
        report(str(error))


def _operator_runs(kubectl: Kubectl) -> bool:
    deployment = kubectl.get("deployment", OPERATOR, f"--namespace={NAMESPACE}")
    return bool(deployment.get("status", {}).get("availableReplicas"))


def _strip(kubectl: Kubectl, job: dict[str, Any], report: Report) -> None:
    """Take off our finalizer, and no other."""
    meta = job["metadata"]
    rest = [name for name in meta.get("finalizers", ()) if name != FINALIZER]
    report(f"{meta['namespace']}/{meta['name']} has not saved: taking off its finalizer")
    patch = {"metadata": {"finalizers": rest, "resourceVersion": meta["resourceVersion"]}}
    place = (_JOBS, meta["name"], f"--namespace={meta['namespace']}")
    kubectl.run("patch", *place, "--type=merge", f"--patch={json.dumps(patch)}")
