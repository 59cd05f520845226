"""Create, update, patch and apply."""

from __future__ import annotations

import uuid
from typing import Any

from apiserver import errors
from apiserver.admission import Admission
from apiserver.apply import apply, track_update
from apiserver.deletes import delete
from apiserver.endpoints import content_of, reset, separated, spec_of
from apiserver.errors import Cause, Json
from apiserver.managed import NOBODY, Manager, now_text
from apiserver.patches import json_merge, json_patch
from apiserver.store import Store, Stored
from apiserver.strategic import strategic_merge
from apiserver.target import Options, Target, named
from apiserver.typed import copy

# Set only by the server: a client's value is replaced by the stored one.
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


class Writer:
    """Executes writes on the store. All methods are synchronous, so each write is atomic."""

    def __init__(self, store: Store, admission: Admission) -> None:
        self._store = store
        self._admission = admission

    def create(self, target: Target, body: Json, options: Options) -> Stored:
        obj = self._decoded(target, body, options)
        meta = obj["metadata"]
        target = named(self._store, target, meta)
        if meta.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        for name in _SERVER_SET:
            meta.pop(name, None)
        manager = Manager(options.manager, "Update", target.resource.api_version)
        return self._insert(target, obj, {}, manager, options)

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
            # The phase of a new pod is set by the server and has no field manager.
            stated = {
                name: value for name, value in obj.items() if (resource.plural, name) != ("pods", "status")
            }
            track_update(NOBODY, {}, stated, resource.node, manager)
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
        """Return the object, and whether it was created."""
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
            reset(config, resource, "")
            managed = apply({"metadata": {}}, {}, NOBODY, config, resource.node, manager, force=True)
            obj = self._completed(target, copy(config))
            named(self._store, target, obj["metadata"])
            return self._insert(target, obj, managed, manager, options), True
        reset(config, resource, target.subresource)
        merged = apply(
            live.obj,
            live.flat(resource.node),
            live.managed,
            config,
            resource.node,
            manager,
            force=options.force,
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
        """Replace `live` by `new`; `manager` is None if ownership is already computed (apply)."""
        resource, old = target.resource, live.obj
        target.check_preconditions(old, new["metadata"])
        new = separated(resource, old, new, target.subresource)
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
        if content_of(old) == content_of(new) and (
            manager or managed == old["metadata"].get("managedFields")
        ):
            return live
        if manager:
            track_update(live.managed, live.flat(resource.node), new, resource.node, manager)
        elif managed is not None:
            meta["managedFields"] = managed
        else:
            meta.pop("managedFields", None)
        if (
            (resource.is_custom or resource.has_generation)
            and not target.subresource
            and spec_of(old) != spec_of(new)
        ):
            meta["generation"] = old["metadata"].get("generation", 0) + 1
        if options.dry_run:
            return Stored(new)
        return self._put_or_finish(target, new)

    def _put_or_finish(self, target: Target, new: Json) -> Stored:
        meta = new["metadata"]
        waits = target.resource.plural == "pods" and meta.get("deletionGracePeriodSeconds", 0) > 0
        if meta.get("deletionTimestamp") and not meta.get("finalizers") and not waits:
            return self._store.remove(target.key, target.namespace, target.name, new) or Stored(new)
        return self._store.put(target.key, new)

    def delete(self, target: Target, body: Json, options: Options) -> tuple[Stored, bool]:
        """Delete an object or begin its deletion; return it, and whether it is gone."""
        return delete(self._store, target, body, options)
