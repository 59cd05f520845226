"""The API resources that the operator and the driver use, and their URL paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

Obj = dict[str, Any]
"""A Kubernetes object as a JSON value."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One API resource; `group` is "" for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL path of an object, or without `name` of the collection.

        Without `namespace` the collection spans all namespaces.
        """
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        parts += [quote(part, safe="") for part in (name, subresource) if part]
        return "/".join(parts)


PODS: Final = Resource("", "v1", "pods", "Pod")
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
EVENTS: Final = Resource("", "v1", "events", "Event")
ROLES: Final = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDINGS: Final = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
TRAINING_JOBS: Final = Resource("megascale.io", "v1alpha1", "trainingjobs", "TrainingJob")
NODE_CHECKS: Final = Resource("megascale.io", "v1alpha1", "nodechecks", "NodeCheck", namespaced=False)


def namespace_of(obj: Obj) -> str:
    return str(obj["metadata"].get("namespace", ""))


def name_of(obj: Obj) -> str:
    return str(obj["metadata"]["name"])
