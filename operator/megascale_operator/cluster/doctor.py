"""`megascale cluster doctor`: checks of the operator's installation, with advice for each that fails."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from ruamel.yaml import YAML

from megascale.cli.api import Finding
from megascale_operator.cluster.kubectl import Kubectl
from megascale_operator.cluster.manifests import CRDS, NAMESPACE, OPERATOR, Manifests
from megascale_operator.cluster.uninstall import jobs, quarantined
from megascale_operator.reconcile.names import FORCE_DELETE

_OLDEST: Final = (1, 30)
_STUCK_S: Final = 900.0


def examine(kubectl: Kubectl, manifests: Manifests, now: datetime) -> list[Finding]:
    """Return the findings for API server, CRDs, operator, leader, permissions, jobs and nodes.

    Raises:
        MegascaleError: a kubectl command failed.
    """
    deployment = kubectl.get("deployment", OPERATOR, f"--namespace={NAMESPACE}")
    return [
        _server(kubectl),
        *(_crd(kubectl, manifests, name) for name in CRDS),
        _operator(deployment),
        _leader(kubectl, now),
        *_node_rights(kubectl, deployment),
        _jobs(kubectl, now),
        _nodes(kubectl),
    ]


def _server(kubectl: Kubectl) -> Finding:
    version = kubectl.run("get", "--raw=/version")
    found = YAML(typ="safe", pure=True).load(version)
    numbers = (int(found["major"]), int(str(found["minor"]).rstrip("+")))
    if numbers < _OLDEST:
        return Finding(
            "API server",
            "change",
            found["gitVersion"],
            "1.30 or newer is needed for the CRDs' validation rules",
        )
    return Finding("API server", "ok", found["gitVersion"], "")


def _crd(kubectl: Kubectl, manifests: Manifests, name: str) -> Finding:
    live = kubectl.get("crd", name)
    plural = name.partition(".")[0]
    if not live:
        return Finding(f"CRD {plural}", "change", "missing", "megascale cluster install")
    if _condition(live, "Established") != "True":
        return Finding(f"CRD {plural}", "change", "not established", f"kubectl describe crd {name}")
    wanted = YAML(typ="safe", pure=True).load(manifests.crds / f"megascale.io_{plural}.yaml")
    if _schema(live) != _schema(wanted):
        return Finding(f"CRD {plural}", "change", "differs from this version", "megascale cluster install")
    return Finding(f"CRD {plural}", "ok", "current", "")


def _schema(crd: dict[str, Any]) -> object:
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _condition(obj: dict[str, Any], kind: str) -> str:
    conditions = obj.get("status", {}).get("conditions", [])
    return next((str(one["status"]) for one in conditions if one["type"] == kind), "Unknown")


def _operator(deployment: dict[str, Any]) -> Finding:
    if not deployment:
        return Finding("operator", "change", "missing", "megascale cluster install")
    wanted = deployment["spec"].get("replicas", 1)
    available = deployment.get("status", {}).get("availableReplicas", 0)
    value = f"{available} of {wanted} replicas available"
    advice = f"kubectl describe pods -n {NAMESPACE} -l app.kubernetes.io/name={OPERATOR}"
    return (
        Finding("operator", "ok", value, "")
        if available == wanted
        else Finding("operator", "change", value, advice)
    )


def _leader(kubectl: Kubectl, now: datetime) -> Finding:
    lease = kubectl.get("lease", OPERATOR, f"--namespace={NAMESPACE}").get("spec", {})
    advice = f"kubectl logs -n {NAMESPACE} deployment/{OPERATOR}"
    if not lease.get("holderIdentity"):
        return Finding("leader", "change", "no replica is the leader", advice)
    age_s = (now - datetime.fromisoformat(lease["renewTime"])).total_seconds()
    value = f"{lease['holderIdentity']}, renewed {max(age_s, 0):.0f} s ago"
    alive = age_s <= lease.get("leaseDurationSeconds", 15)
    return Finding("leader", "ok", value, "") if alive else Finding("leader", "change", value, advice)


def _node_rights(kubectl: Kubectl, deployment: dict[str, Any]) -> Iterator[Finding]:
    """Modes Annotate and Enforce need the permission to write nodes; Observe must not have it."""
    if not deployment:
        return
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    mode = next((e.get("value", "") for e in container.get("env", ()) if e["name"] == "MODE"), "unknown")
    may_write = bool(kubectl.get("clusterrolebinding", f"{OPERATOR}-nodes"))
    value = f"mode {mode}, {'may' if may_write else 'may not'} write nodes"
    fits = may_write == (mode in {"Annotate", "Enforce"})
    advice = (
        ""
        if fits
        else f"megascale cluster install --mode {mode}, or delete clusterrolebinding {OPERATOR}-nodes"
    )
    yield Finding("node permissions", "ok" if fits else "change", value, advice)


def _jobs(kubectl: Kubectl, now: datetime) -> Finding:
    found = jobs(kubectl)
    stuck = [job["metadata"] for job in found if _deleted_for_s(job["metadata"], now) > _STUCK_S]
    value = f"{len(found)}, {len(stuck)} stuck in deletion"
    if not stuck:
        return Finding("jobs", "ok", str(len(found)), "")
    name = f"{stuck[0]['name']} -n {stuck[0]['namespace']}"
    return Finding("jobs", "change", value, f"kubectl annotate tj {name} {FORCE_DELETE}=true")


def _deleted_for_s(metadata: dict[str, Any], now: datetime) -> float:
    at = metadata.get("deletionTimestamp")
    return (now - datetime.fromisoformat(at)).total_seconds() if at else 0.0


def _nodes(kubectl: Kubectl) -> Finding:
    names = quarantined(kubectl)
    shown = f": {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""
    return Finding("quarantined nodes", "ok", f"{len(names)}{shown}", "")


def utc_now() -> datetime:
    """Return the current time, which ages are computed from."""
    return datetime.now(UTC)
