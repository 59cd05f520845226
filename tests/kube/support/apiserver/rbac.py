"""Role-based access control: authorizes requests, and refuses grants of permissions one does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from apiserver.authn import User
from apiserver.errors import Json
from apiserver.store import Event, Store

_GROUP = "rbac.authorization.k8s.io"
ROLES, CLUSTER_ROLES = f"roles.{_GROUP}", f"clusterroles.{_GROUP}"
BINDINGS, CLUSTER_BINDINGS = f"rolebindings.{_GROUP}", f"clusterrolebindings.{_GROUP}"
_WATCHED = frozenset((ROLES, CLUSTER_ROLES, BINDINGS, CLUSTER_BINDINGS))


@dataclass(frozen=True)
class Attributes:
    """A request to authorize. `path` is set for requests that name no resource."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def full_resource(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Rbac:
    """Authorizes by the roles and bindings in the store; rules are cached until one of them changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cache: dict[tuple[str, tuple[str, ...], str], list[Json]] = {}
        store.listen(self._changed)

    def _changed(self, resource: str, _: Event) -> None:
        if resource in _WATCHED:
            self._cache.clear()

    def allows(self, user: User, want: Attributes) -> bool:
        if "system:masters" in user.groups:
            return True
        return any(_rule_allows(rule, want) for rule in self.rules(user, want.namespace))

    def rules(self, user: User, namespace: str) -> list[Json]:
        """Return the rules of `user` in `namespace`, including cluster-wide ones."""
        key = (user.name, user.groups, namespace)
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = list(self._collect(user, namespace))
        return found

    def _collect(self, user: User, namespace: str) -> Iterator[Json]:
        for binding in self._store.values(CLUSTER_BINDINGS):
            if _binds(binding.obj, user, ""):
                yield from self.role_rules(binding.obj["roleRef"], "")
        if namespace:
            for binding in self._store.all(BINDINGS, namespace):
                if _binds(binding.obj, user, namespace):
                    yield from self.role_rules(binding.obj["roleRef"], namespace)

    def role_rules(self, ref: Json, namespace: str) -> list[Json] | None:
        """Return the rules of the role that a binding names, None if there is no such role."""
        cluster = ref["kind"] == "ClusterRole"
        role = self._store.get(CLUSTER_ROLES if cluster else ROLES, "" if cluster else namespace, ref["name"])
        return list(role.obj.get("rules") or ()) if role else None

    def missing(self, user: User, rules: list[Json], namespace: str) -> list[Json]:
        """Return the permissions among `rules` that `user` does not hold and thus may not grant."""
        if "system:masters" in user.groups:
            return []
        held = self.rules(user, namespace)
        return [one for rule in rules for one in _atoms(rule) if not any(_covers(own, one) for own in held)]


def _binds(binding: Json, user: User, namespace: str) -> bool:
    for subject in binding.get("subjects") or ():
        name = subject["name"]
        if subject["kind"] == "User" and name == user.name:
            return True
        if subject["kind"] == "Group" and name in user.groups:
            return True
        if subject["kind"] == "ServiceAccount":
            where = subject.get("namespace") or namespace
            if user.name == f"system:serviceaccount:{where}:{name}":
                return True
    return False


def _has(listed: Any, wanted: str) -> bool:
    return wanted in (listed or ()) or "*" in (listed or ())


def _resource_matches(listed: Any, full: str, subresource: str) -> bool:
    return _has(listed, full) or bool(subresource and f"*/{subresource}" in (listed or ()))


def _rule_allows(rule: Json, want: Attributes) -> bool:
    if not _has(rule.get("verbs"), want.verb):
        return False
    if want.path:
        urls = rule.get("nonResourceURLs") or ()
        return any(want.path == url or (url.endswith("*") and want.path.startswith(url[:-1])) for url in urls)
    names = rule.get("resourceNames") or ()
    return (
        _has(rule.get("apiGroups"), want.group)
        and _resource_matches(rule.get("resources"), want.full_resource, want.subresource)
        and (not names or want.name in names)
    )


def _atoms(rule: Json) -> Iterator[Json]:
    """Split a rule into single permissions: one verb, group, resource and name each."""
    for verb in rule.get("verbs") or ():
        for url in rule.get("nonResourceURLs") or ():
            yield {"verbs": [verb], "nonResourceURLs": [url]}
        for group in rule.get("apiGroups") or ():
            for resource in rule.get("resources") or ():
                base = {"verbs": [verb], "apiGroups": [group], "resources": [resource]}
                for name in rule.get("resourceNames") or [None]:
                    yield base | ({"resourceNames": [name]} if name else {})


def _covers(own: Json, one: Json) -> bool:
    if not _has(own.get("verbs"), one["verbs"][0]):
        return False
    if "nonResourceURLs" in one:
        return _rule_allows(own, Attributes(one["verbs"][0], path=one["nonResourceURLs"][0]))
    full = one["resources"][0]
    names = own.get("resourceNames") or ()
    return (
        _has(own.get("apiGroups"), one["apiGroups"][0])
        and _resource_matches(own.get("resources"), full, full.partition("/")[2])
        and (not names or one.get("resourceNames", [""])[0] in names)
    )


def refusal(user: User, want: Attributes) -> str:
    """Return the API server's message for a forbidden request."""
    if want.path:
        return f'User "{user.name}" cannot {want.verb} path "{want.path}"'
    where = f'in the namespace "{want.namespace}"' if want.namespace else "at the cluster scope"
    what = f'resource "{want.full_resource}" in API group "{want.group}"'
    return f'User "{user.name}" cannot {want.verb} {what} {where}'


def refusal_of_grant(user: User, groups: tuple[str, ...], missing: list[Json]) -> str:
    rights = []
    for one in missing:
        parts = [f"{name}:{one[key]}" for key, name in _SHOWN if key in one]
        rights.append("{" + ", ".join(parts).replace("'", '"') + "}")
    who = f'user "{user.name}" (groups={list(groups)})'.replace("'", '"')
    return f"{who} is attempting to grant RBAC permissions not currently held:\n" + "\n".join(rights)


_SHOWN = (
    ("apiGroups", "APIGroups"),
    ("resources", "Resources"),
    ("resourceNames", "ResourceNames"),
    ("nonResourceURLs", "NonResourceURLs"),
    ("verbs", "Verbs"),
)
