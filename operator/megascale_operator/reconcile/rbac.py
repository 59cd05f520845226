"""ServiceAccounts and RBAC of a job's pods: the driver's Role is minimal, agents have no API access."""

from __future__ import annotations

from megascale_operator.kube.resources import ROLE_BINDINGS, ROLES, SERVICE_ACCOUNTS, Obj, Resource
from megascale_operator.reconcile import names
from megascale_operator.reconcile.job import Job
from megascale_operator.reconcile.maps import with_digest


def rights(job: Job) -> list[tuple[Resource, Obj]]:
    """Return the ServiceAccounts of driver and slots, and the driver's Role."""
    driver, slot = names.driver_account(job.name), names.slot_account(job.name)
    role = {"metadata": job.metadata(driver, "driver"), "rules": _rules(job.name)}
    accounts = [
        {"metadata": job.metadata(driver, "driver"), "automountServiceAccountToken": True},
        {"metadata": job.metadata(slot, "slot"), "automountServiceAccountToken": False},
    ]
    return [
        *((SERVICE_ACCOUNTS, with_digest(account)) for account in accounts),
        (ROLES, with_digest(role)),
    ]


def binding(job: Job) -> tuple[Resource, Obj]:
    """Return the driver's RoleBinding; the API server refuses it until the Role exists."""
    driver = names.driver_account(job.name)
    body = {
        "metadata": job.metadata(driver, "driver"),
        "roleRef": {"apiGroup": ROLES.group, "kind": ROLES.kind, "name": driver},
        "subjects": [{"kind": "ServiceAccount", "name": driver, "namespace": job.namespace}],
    }
    return ROLE_BINDINGS, with_digest(body)


def _rules(job: str) -> list[Obj]:
    """Return the driver's rules, each limited by resourceNames; the operator may grant only what it holds."""
    own = [names.driver_map(job), names.record_map(job)]
    read = [names.job_map(job), names.slots_map(job)]
    return [
        _rule("megascale.io", "trainingjobs", [job], ["get", "watch"]),
        _rule("megascale.io", "trainingjobs/status", [job], ["get", "patch"]),
        _rule("", "configmaps", own, ["get", "watch", "update"]),
        _rule("", "configmaps", read, ["get", "watch"]),
    ]


def _rule(group: str, resource: str, objects: list[str], verbs: list[str]) -> Obj:
    return {"apiGroups": [group], "resources": [resource], "resourceNames": objects, "verbs": verbs}
