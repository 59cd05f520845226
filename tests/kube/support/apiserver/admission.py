"""Decoding, defaulting and validation per kind, before an object is stored."""

from __future__ import annotations

import base64
from typing import Protocol

from apiserver import errors, pods
from apiserver.authn import User
from apiserver.customtypes import schemas
from apiserver.errors import Cause, Json
from apiserver.rbac import (
    BINDINGS,
    CLUSTER_BINDINGS,
    CLUSTER_ROLES,
    ROLES,
    Attributes,
    Rbac,
    refusal_of_grant,
)
from apiserver.resources import CRDS, Registry, Resource
from apiserver.store import Store
from apiserver.typed import Decoding


class CustomType(Protocol):
    """The schema of one custom resource version."""

    def decode(self, body: Json) -> tuple[Json, list[str]]:
        """Return a pruned copy, and the paths of unknown fields."""

    def default(self, obj: Json) -> Json:
        """Return the object with defaults."""

    def check(self, obj: Json, old: Json | None, /) -> list[Cause]:
        """Return schema and CEL violations; `old` enables transition rules."""


class Admission:
    """Processes the body of a write before it is stored."""

    def __init__(self, store: Store, registry: Registry, rbac: Rbac) -> None:
        self._store = store
        self._registry = registry
        self._rbac = rbac
        self.custom_types: dict[str, CustomType] = {}

    def decode(self, resource: Resource, body: Json) -> tuple[Json, list[str]]:
        """Return a pruned copy, and unknown fields. Raises: 400 for wrong types, 422 for missing fields."""
        if resource.is_custom:
            return self.custom_types[resource.key].decode(body)
        decoding = Decoding()
        obj: Json = decoding.prune(body, resource.node, "")
        if decoding.mistyped:
            what = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
            raise errors.bad_request(f"{what}: json: {decoding.mistyped[0]}")
        if decoding.missing:
            name = obj.get("metadata", {}).get("name", "")
            raise errors.invalid(resource.kind, resource.group, name, decoding.missing)
        return obj, decoding.unknown

    def defaulted(self, resource: Resource, obj: Json) -> Json:
        """Return `obj` with schema defaults (custom resources only; pods are defaulted at creation)."""
        return self.custom_types[resource.key].default(obj) if resource.is_custom else obj

    def create(self, resource: Resource, obj: Json, user: User) -> None:
        """Default and validate a new object in place."""
        if resource.is_custom:
            self._check(resource, obj, None)
        elif resource.key == CRDS:
            _check_definition(obj)
        elif resource.plural == "pods":
            self._create_pod(resource, obj)
        elif resource.plural == "nodes":
            _default_node(obj)
        elif resource.plural == "secrets":
            _fold_string_data(obj)
        elif resource.plural == "events":
            _check_event(resource, obj)
        elif resource.plural == "namespaces":
            obj["status"] = {"phase": "Active"}
            obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
        self._check_grants(resource, obj, user)

    def update(self, resource: Resource, old: Json, new: Json, subresource: str, user: User) -> None:
        """Validate a changed object."""
        causes = _check_update(resource, old, new)
        if resource.plural == "pods" and not subresource:
            causes += pods.check_pod_update(old, new)
        if causes:
            raise errors.invalid(resource.kind, resource.group, new["metadata"]["name"], causes)
        if resource.plural == "secrets":
            _fold_string_data(new)
        if resource.key == CRDS and old["spec"] != new["spec"]:
            _check_definition(new)
        if resource.is_custom:
            self._check(resource, new, old)
        elif old != new:
            self._check_grants(resource, new, user)

    def _check(self, resource: Resource, obj: Json, old: Json | None) -> None:
        causes = self.custom_types[resource.key].check(obj, old)
        if causes:
            raise errors.invalid(resource.kind, resource.group, obj["metadata"]["name"], causes)

    def _create_pod(self, resource: Resource, obj: Json) -> None:
        spec, name = obj.get("spec") or {}, obj["metadata"]["name"]
        if not spec.get("containers"):
            cause = Cause("spec.containers", "Required value", "FieldValueRequired")
            raise errors.invalid(resource.kind, "", name, [cause])
        causes = _check_containers(spec)
        if causes:
            raise errors.invalid(resource.kind, "", name, causes)
        pods.default_pod(obj, obj["metadata"]["uid"][:5], self._store)

    def _check_grants(self, resource: Resource, obj: Json, user: User) -> None:
        """Check the permissions that a role or binding grants.

        Raises: 403 if the user does not hold them, 404 if the role does not exist, unless the user has
        `escalate` or `bind`.
        """
        key, namespace = resource.key, obj["metadata"].get("namespace", "")
        if key in {ROLES, CLUSTER_ROLES}:
            rules, verb = list(obj.get("rules") or ()), "escalate"
        elif key in {BINDINGS, CLUSTER_BINDINGS}:
            found, verb = self._rbac.role_rules(obj["roleRef"], namespace), "bind"
            if found is None and not self._may_anyway(user, verb, resource, obj, namespace):
                raise errors.not_found(resource.plural, resource.group, obj["metadata"]["name"])
            rules = found or []
        else:
            return
        missing = self._rbac.missing(user, rules, namespace)
        if missing and not self._may_anyway(user, verb, resource, obj, namespace):
            why = refusal_of_grant(user, user.groups, missing)
            raise errors.forbidden(resource.plural, resource.group, obj["metadata"]["name"], why)

    def _may_anyway(self, user: User, verb: str, resource: Resource, obj: Json, namespace: str) -> bool:
        name, plural = obj["metadata"]["name"], resource.plural
        if verb == "bind":
            name = obj["roleRef"]["name"]
            plural = "clusterroles" if obj["roleRef"]["kind"] == "ClusterRole" else "roles"
        return self._rbac.allows(user, Attributes(verb, resource.group, plural, "", namespace, name))


def _check_event(resource: Resource, event: Json) -> None:
    """Raises: 422 if an Event is in another namespace than the object it is about."""
    about, here = event["involvedObject"].get("namespace", ""), event["metadata"]["namespace"]
    if here != (about or "default"):
        cause = Cause("involvedObject.namespace", f'Invalid value: "{about}": does not match event.namespace')
        raise errors.invalid(resource.kind, resource.group, event["metadata"]["name"], [cause])


def _check_definition(crd: Json) -> None:
    """Raises: 422 for a schema that cannot be compiled."""
    try:
        schemas(crd["spec"])
    except ValueError as error:
        cause = Cause("spec.versions", f"Invalid value: {error}")
        name = crd["metadata"]["name"]
        raise errors.invalid("CustomResourceDefinition", "apiextensions.k8s.io", name, [cause]) from error


def _check_update(resource: Resource, old: Json, new: Json) -> list[Cause]:
    """Reject new finalizers during deletion, changes of immutable maps, and of a binding's role."""
    causes = []
    leaving = old["metadata"].get("deletionTimestamp")
    if leaving and set(new["metadata"].get("finalizers", ())) - set(old["metadata"].get("finalizers", ())):
        message = "Forbidden: no new finalizers can be added if the object is being deleted"
        causes.append(Cause("metadata.finalizers", message, "FieldValueForbidden"))
    fixed = resource.plural in {"configmaps", "secrets"} and old.get("immutable")
    if fixed and any(old.get(name) != new.get(name) for name in ("data", "binaryData", "immutable")):
        message = "Forbidden: field is immutable when `immutable` is set"
        causes.append(Cause("data", message, "FieldValueForbidden"))
    if resource.plural.endswith("rolebindings") and old["roleRef"] != new["roleRef"]:
        causes.append(Cause("roleRef", "Invalid value: cannot change roleRef"))
    return causes


def _check_containers(spec: Json) -> list[Cause]:
    """Check names, images, and that mounted volumes exist."""
    causes, seen = [], set()
    volumes = {one["name"] for one in spec.get("volumes", ())}
    for group in ("initContainers", "containers"):
        for n, one in enumerate(spec.get(group, ())):
            where = f"spec.{group}[{n}]"
            if not one.get("image"):
                causes.append(Cause(f"{where}.image", "Required value", "FieldValueRequired"))
            if one["name"] in seen:
                causes.append(
                    Cause(f"{where}.name", f'Duplicate value: "{one["name"]}"', "FieldValueDuplicate")
                )
            seen.add(one["name"])
            for m, mount in enumerate(one.get("volumeMounts", ())):
                if mount["name"] not in volumes:
                    causes.append(
                        Cause(
                            f"{where}.volumeMounts[{m}].name",
                            f'Not found: "{mount["name"]}"',
                            "FieldValueNotFound",
                        )
                    )
    return causes


def _default_node(obj: Json) -> None:
    """Taint a node until its first Ready condition, as the TaintNodesByCondition plug-in does."""
    taints = obj.setdefault("spec", {}).setdefault("taints", [])
    if not any(one["key"] == "node.kubernetes.io/not-ready" for one in taints):
        taints.append({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"})
    status = obj.setdefault("status", {})
    if "capacity" in status:
        status.setdefault("allocatable", status["capacity"])


def _fold_string_data(obj: Json) -> None:
    for name, value in obj.pop("stringData", {}).items():
        obj.setdefault("data", {})[name] = base64.b64encode(value.encode()).decode()
    obj.setdefault("type", "Opaque")
