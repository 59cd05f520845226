"""Create, update, patch, apply and delete: everything that changes an object on behalf of a request."""

from __future__ import annotations

import re
import secrets
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from apiserver import errors, pods
from apiserver.admission import Admission
from apiserver.apply import Manager, apply, now_text, track_update
from apiserver.authn import User
from apiserver.errors import Cause, Json
from apiserver.patches import json_merge, json_patch
from apiserver.resources import Resource, storage_key
from apiserver.store import Store, Stored
from apiserver.strategic import strategic_merge
from apiserver.typed import copy

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_RBAC_NAME = re.compile(r"[^/%]+")
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
# Set by the server alone: a client's value is replaced by the stored one.
_SERVER_SET = (
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
)
JSON_PATCH, MERGE_PATCH = "application/json-patch+json", "application/merge-patch+json"
STRATEGIC_PATCH, APPLY_PATCH = "application/strategic-merge-patch+json", "application/apply-patch+yaml"


@dataclass(frozen=True)
class Options:
    """Query parameters of a write, and who sends it."""

    user: User
    manager: str = "unknown"
    field_validation: str = "Warn"
    force: bool = False
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list, hash=False, compare=False)


@dataclass(frozen=True)
class Target:
    """What a write is about."""

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


class Writer:
    """Performs writes on the store. All methods are synchronous: one write is one step."""

    def __init__(self, store: Store, admission: Admission) -> None:
        self._store = store
        self._admission = admission

    def create(self, target: Target, body: Json, options: Options) -> Stored:
        obj = self._decoded(target, body, options)
        meta = obj["metadata"]
        target = self._named(target, meta)
        if meta.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        for name in _SERVER_SET:
            meta.pop(name, None)
        manager = Manager(options.manager, "Update", target.resource.api_version)
        return self._insert(target, obj, {}, manager, options)

    def _named(self, target: Target, meta: Json) -> Target:
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + "".join(secrets.choice(_SUFFIX) for _ in range(5))
        name = meta.get("name") or target.name
        if not name:
            raise target.invalid(
                [
                    Cause(
                        "metadata.name",
                        "Required value: name or generateName is required",
                        "FieldValueRequired",
                    )
                ]
            )
        pattern = _RBAC_NAME if target.resource.group == "rbac.authorization.k8s.io" else _NAME
        target = Target(target.resource, target.namespace, name, target.subresource)
        if not pattern.fullmatch(name) or len(name) > 253:
            message = f'Invalid value: "{name}": a lowercase RFC 1123 subdomain is needed'
            raise target.invalid([Cause("metadata.name", message)])
        if target.resource.namespaced:
            if meta.setdefault("namespace", target.namespace) != target.namespace:
                raise errors.bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request"
                )
            if self._store.get("namespaces", "", target.namespace) is None:
                raise errors.not_found("namespaces", "", target.namespace)
        elif meta.pop("namespace", None):
            raise errors.bad_request("namespace should not be set on a cluster-scoped object")
        return target

    def _insert(self, target: Target, obj: Json, managed: Json, manager: Manager, options: Options) -> Stored:
        resource, meta = target.resource, obj["metadata"]
        if self._store.get(target.key, target.namespace, target.name):
            raise errors.already_exists(resource.plural, resource.group, target.name)
        if "status" in resource.subresources and (resource.is_custom or resource.has_generation):
            obj.pop("status", None)
        obj |= {"apiVersion": resource.api_version, "kind": resource.kind}
        meta |= {"name": target.name, "uid": str(uuid.uuid4()), "creationTimestamp": now_text()}
        if resource.is_custom or resource.has_generation:
            meta["generation"] = 1
        self._admission.create(target.resource, obj, options.user)
        if managed:
            meta["managedFields"] = managed["metadata"].get("managedFields", [])
        else:
            # The phase that the server gives a new pod belongs to nobody.
            stated = {
                name: value for name, value in obj.items() if (resource.plural, name) != ("pods", "status")
            }
            track_update({"metadata": {}}, {}, stated, resource.node, manager)
        if options.dry_run:
            return Stored(obj)
        return self._store.put(target.key, obj)

    def update(self, target: Target, body: Json, options: Options) -> Stored:
        live = self._live(target)
        new = self._decoded(target, body, options)
        given = new["metadata"].get("name", target.name)
        if given != target.name:
            raise errors.bad_request(
                f"the name of the object ({given}) does not match the name on the URL ({target.name})"
            )
        if not new["metadata"].get("resourceVersion") and (
            target.resource.is_custom or target.resource.update_needs_version
        ):
            message = "Invalid value: 0x0: must be specified for an update"
            raise target.invalid([Cause("metadata.resourceVersion", message)])
        manager = Manager(options.manager, "Update", target.resource.api_version, target.subresource)
        return self._replace(target, live, new, manager, options)

    def patch(self, target: Target, content_type: str, body: Any, options: Options) -> tuple[Stored, bool]:
        """The object, and whether it was created."""
        if content_type == APPLY_PATCH:
            return self._apply(target, body, options)
        live = self._live(target)
        if content_type == JSON_PATCH:
            patched = json_patch(live.obj, body)
        elif content_type == MERGE_PATCH:
            patched = json_merge(live.obj, body)
        elif content_type == STRATEGIC_PATCH and not target.resource.is_custom:
            patched = strategic_merge(live.obj, body, target.resource.node)
        else:
            raise errors.unsupported_media("", [JSON_PATCH, MERGE_PATCH, APPLY_PATCH])
        manager = Manager(options.manager, "Update", target.resource.api_version, target.subresource)
        new = self._decoded(target, patched, options)
        return self._replace(target, live, new, manager, options), False

    def _apply(self, target: Target, body: Json, options: Options) -> tuple[Stored, bool]:
        config = self._decoded(target, body, options, defaults=False)
        meta = config.setdefault("metadata", {})
        if meta.get("managedFields"):
            raise errors.bad_request("metadata.managedFields must be nil")
        if meta.setdefault("name", target.name) != target.name:
            raise errors.bad_request(
                f"the name of the object ({meta['name']}) does not match the name on the URL ({target.name})"
            )
        config |= {"apiVersion": target.resource.api_version, "kind": target.resource.kind}
        resource = target.resource
        live = self._store.get(target.key, target.namespace, target.name)
        manager = Manager(options.manager, "Apply", resource.api_version, target.subresource)
        if live is None:
            if target.subresource:
                raise target.not_found()
            if meta.get("uid") or meta.get("resourceVersion"):
                raise target.conflict(
                    "uid mismatch: the provided object specified uid, and no existing object was found"
                )
            _reset(config, resource, "")
            managed = apply({"metadata": {}}, {}, config, resource.node, manager, force=True)
            obj = self._completed(target, copy(config))
            self._named(target, obj["metadata"])
            return self._insert(target, obj, managed, manager, options), True
        _reset(config, resource, target.subresource)
        merged = apply(
            live.obj, live.flat(resource.node), config, resource.node, manager, force=options.force
        )
        new = self._completed(target, merged)
        return self._replace(target, live, new, None, options), False

    def _completed(self, target: Target, obj: Json) -> Json:
        return self._admission.defaulted(target.resource, obj)

    def _live(self, target: Target) -> Stored:
        live = self._store.get(target.key, target.namespace, target.name)
        if live is None:
            raise target.not_found()
        return live

    def _decoded(self, target: Target, body: Any, options: Options, *, defaults: bool = True) -> Json:
        resource = target.resource
        if not isinstance(body, dict):
            raise errors.bad_request("the body of the request is not an object")
        for name, wanted in (("kind", resource.kind), ("apiVersion", resource.api_version)):
            if body.get(name, wanted) != wanted:
                raise errors.bad_request(
                    f"{name} of the object ({body[name]}) does not match {wanted} of the URL"
                )
        obj, unknown = self._admission.decode(resource, body)
        if unknown and options.field_validation == "Strict":
            listed = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise errors.bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
                f"strict decoding error: {listed}"
            )
        if options.field_validation == "Warn":
            options.warnings.extend(f'unknown field "{path}"' for path in unknown)
        obj.setdefault("metadata", {})
        return self._completed(target, obj) if defaults else obj

    def _replace(
        self, target: Target, live: Stored, new: Json, manager: Manager | None, options: Options
    ) -> Stored:
        """Put `new` where `live` is; `manager` is None when ownership is worked out already (apply)."""
        resource, old = target.resource, live.obj
        self._check_preconditions(target, old, new["metadata"])
        new = _separated(resource, old, new, target.subresource)
        meta = new["metadata"]
        managed = meta.get("managedFields")
        for name in _SERVER_SET:
            meta.pop(name, None)
            if name in old["metadata"]:
                meta[name] = old["metadata"][name]
        meta |= {"name": target.name, "resourceVersion": old["metadata"]["resourceVersion"]}
        if resource.namespaced:
            meta["namespace"] = target.namespace
        new |= {"apiVersion": resource.api_version, "kind": resource.kind}
        self._admission.update(resource, old, new, target.subresource, options.user)
        if _content(old) == _content(new) and (manager or managed == old["metadata"].get("managedFields")):
            return live
        if manager:
            track_update(old, live.flat(resource.node), new, resource.node, manager)
        elif managed is not None:
            meta["managedFields"] = managed
        else:
            meta.pop("managedFields", None)
        if (
            (resource.is_custom or resource.has_generation)
            and not target.subresource
            and _spec(old) != _spec(new)
        ):
            meta["generation"] = old["metadata"].get("generation", 0) + 1
        if options.dry_run:
            return Stored(new)
        return self._put_or_finish(target, new)

    def _check_preconditions(self, target: Target, old: Json, given: Json) -> None:
        version, uid = given.get("resourceVersion"), given.get("uid")
        if uid and uid != old["metadata"]["uid"]:
            raise target.conflict(
                f"Precondition failed: UID in precondition: {uid}, "
                f"UID in object meta: {old['metadata']['uid']}"
            )
        if version and version not in {"0", old["metadata"]["resourceVersion"]}:
            raise target.conflict()

    def _put_or_finish(self, target: Target, new: Json) -> Stored:
        meta = new["metadata"]
        waits = target.resource.plural == "pods" and meta.get("deletionGracePeriodSeconds", 0) > 0
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and not waits:
            return self._store.remove(target.key, target.namespace, target.name, new) or Stored(new)
        return self._store.put(target.key, new)

    def delete(self, target: Target, body: Json, options: Options) -> tuple[Stored, bool]:
        """Delete, or begin to; the object, and whether it is gone. `body`: DeleteOptions."""
        live = self._live(target)
        wanted = body.get("preconditions") or {}
        self._check_preconditions(target, live.obj, wanted)
        policy = body.get("propagationPolicy") or ("Orphan" if body.get("orphanDependents") else "Background")
        if policy == "Foreground":
            raise errors.not_implemented("foreground deletion")
        grace = self._grace_s(target, live.obj, body)
        if options.dry_run:
            return live, False
        obj: Json = copy(live.obj)
        meta = obj["metadata"]
        if policy == "Orphan" and "orphan" not in meta.get("finalizers", ()):
            meta["finalizers"] = [*meta.get("finalizers", ()), "orphan"]
        if not meta.get("finalizers") and not grace:
            return self._store.remove(target.key, target.namespace, target.name) or live, True
        before = meta.get("deletionGracePeriodSeconds")
        if meta.get("deletionTimestamp") and (before is None or before <= grace) and policy != "Orphan":
            return live, False
        meta["deletionTimestamp"] = (datetime.now(UTC) + timedelta(seconds=grace)).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
        meta["deletionGracePeriodSeconds"] = grace
        if "generation" in meta:
            meta["generation"] += 1
        return self._store.put(target.key, obj), False

    def _grace_s(self, target: Target, obj: Json, body: Json) -> int:
        """Pods that run somewhere get their grace period, everything else goes at once."""
        if target.resource.plural != "pods" or not obj["spec"].get("nodeName") or pods.is_over(obj):
            return 0
        given = body.get("gracePeriodSeconds")
        own = obj["spec"].get("terminationGracePeriodSeconds", 30)
        return int(own if given is None else max(0, given))


def _reset(config: Json, resource: Resource, subresource: str) -> None:
    """Drop what an apply through this endpoint cannot set."""
    if subresource == "status":
        for name in [one for one in config if one not in {"status", "metadata", "apiVersion", "kind"}]:
            del config[name]
        config["metadata"] = {
            key: value
            for key, value in config["metadata"].items()
            if key in {"name", "namespace", "uid", "resourceVersion"}
        }
    elif "status" in resource.subresources:
        config.pop("status", None)


def _separated(resource: Resource, old: Json, new: Json, subresource: str) -> Json:
    """`new` with everything reset that this endpoint may not change."""
    if subresource == "status":
        meta = old["metadata"] | {"managedFields": new["metadata"].get("managedFields")}
        if meta["managedFields"] is None:
            del meta["managedFields"]
        if not resource.is_custom:
            meta |= {key: new["metadata"][key] for key in ("labels", "annotations") if key in new["metadata"]}
        kept = {name: value for name, value in old.items() if name != "status"} | {"metadata": dict(meta)}
        return kept | ({"status": new["status"]} if "status" in new else {})
    if "status" in resource.subresources:
        kept = {name: value for name, value in new.items() if name != "status"} | {
            "metadata": dict(new["metadata"])
        }
        return kept | ({"status": old["status"]} if "status" in old else {})
    return new | {"metadata": dict(new["metadata"])}


def _spec(obj: Json) -> Json:
    return {
        name: value for name, value in obj.items() if name not in {"metadata", "status", "apiVersion", "kind"}
    }


def _content(obj: Json) -> Json:
    meta = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    return obj | {"metadata": meta}
