"""The object and options of a write, and valid object names."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from apiserver import errors
from apiserver.authn import User
from apiserver.errors import Cause, Json
from apiserver.resources import Resource, storage_key
from apiserver.store import Store

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_RBAC_NAME = re.compile(r"[^/%]+")
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
_LONGEST_NAME = 253


@dataclass(frozen=True)
class Options:
    """Query parameters of a write, and its user."""

    user: User
    manager: str = "unknown"
    field_validation: str = "Warn"
    force: bool = False
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list, hash=False, compare=False)


@dataclass(frozen=True)
class Target:
    """The object that a write changes."""

    resource: Resource
    namespace: str
    name: str
    subresource: str = ""

    @property
    def key(self) -> str:
        return storage_key(self.resource)

    def not_found(self) -> errors.ApiError:
        return errors.not_found(self.resource.plural, self.resource.group, self.name)

    def conflict(self, why: str = "") -> errors.ApiError:
        return errors.conflict(self.resource.plural, self.resource.group, self.name, why)

    def invalid(self, causes: list[Cause]) -> errors.ApiError:
        return errors.invalid(self.resource.kind, self.resource.group, self.name, causes)

    def check_preconditions(self, old: Json, given: Json) -> None:
        """Compare optional uid and resourceVersion in `given` (metadata or preconditions). Raises: 409."""
        version, uid = given.get("resourceVersion"), given.get("uid")
        if uid and uid != old["metadata"]["uid"]:
            mine = old["metadata"]["uid"]
            raise self.conflict(
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {mine}"
            )
        if version and version not in {"0", old["metadata"]["resourceVersion"]}:
            raise self.conflict()


def named(store: Store, target: Target, meta: Json) -> Target:
    """Return the target with the name and namespace of a new object; both are written to `meta`.

    Raises: 422 for an invalid name, 404 for a missing namespace, 400 for the wrong one.
    """
    if not meta.get("name") and meta.get("generateName"):
        meta["name"] = meta["generateName"] + "".join(secrets.choice(_SUFFIX) for _ in range(5))
    name = meta.get("name") or target.name
    if not name:
        why = "Required value: name or generateName is required"
        raise target.invalid([Cause("metadata.name", why, "FieldValueRequired")])
    pattern = _RBAC_NAME if target.resource.group == "rbac.authorization.k8s.io" else _NAME
    if not pattern.fullmatch(name) or len(name) > _LONGEST_NAME:
        message = f'Invalid value: "{name}": a lowercase RFC 1123 subdomain is needed'
        raise target.invalid([Cause("metadata.name", message)])
    _check_namespace(store, target, meta)
    return Target(target.resource, target.namespace, name, target.subresource)


def _check_namespace(store: Store, target: Target, meta: Json) -> None:
    if not target.resource.namespaced:
        if meta.pop("namespace", None):
            raise errors.bad_request("namespace should not be set on a cluster-scoped object")
        return
    if meta.setdefault("namespace", target.namespace) != target.namespace:
        why = "the namespace of the provided object does not match the namespace sent on the request"
        raise errors.bad_request(why)
    if store.get("namespaces", "", target.namespace) is None:
        raise errors.not_found("namespaces", "", target.namespace)
