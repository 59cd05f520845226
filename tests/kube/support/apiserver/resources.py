"""The served resources: built-in ones, and those of CRDs."""

from __future__ import annotations

from dataclasses import dataclass, field

from apiserver import typed
from apiserver.errors import Json, qualified

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass
class Resource:
    """One served resource version. `node` is its type, `columns` the CRD's printer columns."""

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    definition: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    columns: list[Json] = field(default_factory=list)
    schema: Json = field(default_factory=dict)
    has_generation: bool = False
    update_needs_version: bool = False
    _node: typed.Node | None = None

    @property
    def key(self) -> str:
        """The name in the store and in RBAC messages: `pods`, `leases.coordination.k8s.io`."""
        return qualified(self.plural, self.group)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def is_custom(self) -> bool:
        return not self.definition

    @property
    def node(self) -> typed.Node:
        if self._node is None:
            self._node = typed.builtin(self.definition) if self.definition else typed.custom(self.schema)
        return self._node


_CORE = "io.k8s.api.core.v1."
_RBAC = "io.k8s.api.rbac.v1."


def _core(kind: str, plural: str, *short: str, cluster: bool = False, sub: tuple[str, ...] = ()) -> Resource:
    return Resource("", "v1", kind, plural, kind.lower(), not cluster, _CORE + kind, short, subresources=sub)


def _rbac(kind: str, plural: str, *, cluster: bool = False) -> Resource:
    group = "rbac.authorization.k8s.io"
    return Resource(group, "v1", kind, plural, kind.lower(), not cluster, _RBAC + kind)


def _other(
    group: str, package: str, kind: str, plural: str, *, cluster: bool = False, short: tuple[str, ...] = (),
    generation: bool = False, needs_version: bool = False, verbs: tuple[str, ...] = ALL_VERBS,
    sub: tuple[str, ...] = (),
) -> Resource:  # fmt: skip
    return Resource(
        group, "v1", kind, plural, kind.lower(), not cluster, f"{package}.v1.{kind}", short, (), sub, verbs,
        has_generation=generation, update_needs_version=needs_version,
    )  # fmt: skip


CRDS = "customresourcedefinitions.apiextensions.k8s.io"
LEASES = "leases.coordination.k8s.io"


def builtin_resources() -> list[Resource]:
    """Return a new table of the built-in resources."""
    return [
        _core("Pod", "pods", "po", sub=("status", "eviction", "binding", "log")),
        _core("Node", "nodes", "no", cluster=True, sub=("status",)),
        _core("Namespace", "namespaces", "ns", cluster=True, sub=("status",)),
        _core("ConfigMap", "configmaps", "cm"),
        _core("Secret", "secrets"),
        _core("Service", "services", "svc"),
        _core("ServiceAccount", "serviceaccounts", "sa", sub=("token",)),
        _core("Event", "events", "ev"),
        _other("events.k8s.io", "io.k8s.api.events", "Event", "events", short=("ev",)),
        _other("coordination.k8s.io", "io.k8s.api.coordination", "Lease", "leases", needs_version=True),
        _rbac("Role", "roles"),
        _rbac("RoleBinding", "rolebindings"),
        _rbac("ClusterRole", "clusterroles", cluster=True),
        _rbac("ClusterRoleBinding", "clusterrolebindings", cluster=True),
        _other(
            "apps", "io.k8s.api.apps", "Deployment", "deployments",
            short=("deploy",), generation=True, sub=("status",),
        ),
        _other(
            "networking.k8s.io", "io.k8s.api.networking", "NetworkPolicy", "networkpolicies",
            short=("netpol",), generation=True,
        ),
        _other(
            "policy", "io.k8s.api.policy", "PodDisruptionBudget", "poddisruptionbudgets",
            short=("pdb",), generation=True, sub=("status",),
        ),
        _other(
            "scheduling.k8s.io", "io.k8s.api.scheduling", "PriorityClass", "priorityclasses",
            cluster=True, short=("pc",), generation=True,
        ),
        _other(
            "apiextensions.k8s.io", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
            "CustomResourceDefinition", "customresourcedefinitions", cluster=True, short=("crd",),
            generation=True, needs_version=True, sub=("status",),
        ),
        _other(
            "authorization.k8s.io", "io.k8s.api.authorization", "SelfSubjectAccessReview",
            "selfsubjectaccessreviews", cluster=True, verbs=("create",),
        ),
        _other(
            "authentication.k8s.io", "io.k8s.api.authentication", "SelfSubjectReview", "selfsubjectreviews",
            cluster=True, verbs=("create",),
        ),
    ]  # fmt: skip


class Registry:
    """Finds resources by URL and by kind; CRDs add and remove resources."""

    def __init__(self) -> None:
        self._by_path: dict[tuple[str, str, str], Resource] = {}
        for resource in builtin_resources():
            self.add(resource)

    def add(self, resource: Resource) -> None:
        self._by_path[resource.group, resource.version, resource.plural] = resource

    def drop(self, group: str, plural: str) -> None:
        for path in [one for one in self._by_path if (one[0], one[2]) == (group, plural)]:
            del self._by_path[path]

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def by_key(self, key: str) -> Resource | None:
        return next((one for one in self._by_path.values() if one.key == key), None)

    def by_kind(self, api_version: str, kind: str) -> Resource | None:
        found = (one for one in self._by_path.values() if one.kind == kind and one.api_version == api_version)
        return next(found, None)

    def all(self) -> list[Resource]:
        return list(self._by_path.values())


def storage_key(resource: Resource) -> str:
    """Return the store key; both Event APIs serve the same objects."""
    return "events" if resource.plural == "events" else resource.key
