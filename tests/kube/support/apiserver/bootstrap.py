"""Initial objects of a cluster: namespaces, default roles, and their bindings."""

from __future__ import annotations

from apiserver.authn import User
from apiserver.errors import Json
from apiserver.resources import Registry
from apiserver.target import Options, Target
from apiserver.writes import Writer

SYSTEM = User("system:apiserver", ("system:masters",))
NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_DISCOVERY_URLS = [
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi",
    "/openapi/*",
    "/readyz",
    "/version",
    "/version/",
]
_EVERYTHING = [
    {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    {"nonResourceURLs": ["*"], "verbs": ["*"]},
]
_REVIEWS = [
    {"apiGroups": ["authorization.k8s.io"], "resources": ["selfsubjectaccessreviews"], "verbs": ["create"]},
    {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]},
]
_OPENID = [{"nonResourceURLs": ["/.well-known/openid-configuration", "/openid/v1/jwks"], "verbs": ["get"]}]
_ROLES: dict[str, tuple[list[Json], str]] = {
    "cluster-admin": (_EVERYTHING, "system:masters"),
    "system:discovery": ([{"nonResourceURLs": _DISCOVERY_URLS, "verbs": ["get"]}], "system:authenticated"),
    "system:basic-user": (_REVIEWS, "system:authenticated"),
    "system:service-account-issuer-discovery": (_OPENID, "system:serviceaccounts"),
}


def bootstrap(writer: Writer, registry: Registry) -> None:
    """Create the initial objects in an empty store."""
    for name in NAMESPACES:
        _create(writer, registry, "v1", "Namespace", name, {})
    for name, (rules, group) in _ROLES.items():
        _create(writer, registry, _RBAC, "ClusterRole", name, {"rules": rules})
        subject = {"kind": "Group", "name": group, "apiGroup": "rbac.authorization.k8s.io"}
        ref = {"kind": "ClusterRole", "name": name, "apiGroup": "rbac.authorization.k8s.io"}
        _create(writer, registry, _RBAC, "ClusterRoleBinding", name, {"subjects": [subject], "roleRef": ref})
    for name, value in (("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)):
        _create(writer, registry, "scheduling.k8s.io/v1", "PriorityClass", name, {"value": value})


_RBAC = "rbac.authorization.k8s.io/v1"


def _create(writer: Writer, registry: Registry, api_version: str, kind: str, name: str, rest: Json) -> None:
    resource = registry.by_kind(api_version, kind)
    if resource is None:
        raise LookupError(f"{api_version} {kind} is not a built-in resource")
    obj = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}} | rest
    writer.create(Target(resource, "", name), obj, Options(SYSTEM, "apiserver"))
