"""Dispatches parsed writes to the parts that execute them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from apiserver import errors, rbac
from apiserver.answers import Answer, dumped, listing, renderer
from apiserver.authn import User
from apiserver.errors import Json
from apiserver.eventsapi import from_core, to_core
from apiserver.podactions import Actions
from apiserver.reads import Reader
from apiserver.requests import Ask
from apiserver.resources import Registry, Resource
from apiserver.store import Stored
from apiserver.target import Options, Target
from apiserver.writes import Writer

_ACTIONS = frozenset(("binding", "eviction", "token"))
_REVIEWS = frozenset(("authorization.k8s.io", "authentication.k8s.io"))
# The API server responds to their deletion with the object, and with a Status for all others.
_RETURNED_WHEN_DELETED = frozenset(("pods", "serviceaccounts"))


class Dispatch:
    """Executes writes, actions and reviews."""

    def __init__(
        self, registry: Registry, writer: Writer, reader: Reader, actions: Actions, access: rbac.Rbac
    ) -> None:
        self._registry = registry
        self._writer = writer
        self._reader = reader
        self._actions = actions
        self._rbac = access

    def write(self, request: web.Request, user: User, resource: Resource, ask: Ask, body: Any) -> Answer:
        options = _options(request, user, ask)
        target = Target(resource, ask.namespace if resource.namespaced else "", ask.name, ask.subresource)
        if resource.group in _REVIEWS:
            return Answer(dumped(self._review(resource, user, body)), 201)
        if ask.subresource in _ACTIONS:
            return Answer(dumped(self._act(target, body, options)), 201)
        if resource.group == "events.k8s.io":
            return self._write_event(target, ask, body, options)
        if ask.verb == "deletecollection":
            return self._delete_collection(target, ask, body, options)
        stored, code, gone = self._change(request, target, ask, body, options)
        return _deleted(target, stored) if gone else _written(request, resource, ask, stored, code, options)

    def _change(
        self, request: web.Request, target: Target, ask: Ask, body: Any, options: Options
    ) -> tuple[Stored, int, bool]:
        """Return the object, the status code, and whether the object is gone."""
        if ask.verb == "create":
            return self._writer.create(target, body, options), 201, False
        if ask.verb == "update":
            return self._writer.update(target, body, options), 200, False
        if ask.verb == "delete":
            stored, gone = self._writer.delete(target, body, options)
            return stored, 200, gone
        if ask.verb == "patch":
            stored, created = self._writer.patch(target, request.content_type, body, options)
            return stored, 201 if created else 200, False
        raise errors.not_implemented(f"{ask.verb} of {target.resource.plural}")

    def _write_event(self, target: Target, ask: Ask, body: Any, options: Options) -> Answer:
        core = self._registry.find("", "v1", "events")
        if core is None or ask.verb not in {"create", "patch"} or not isinstance(body, dict):
            raise errors.not_implemented(f"{ask.verb} of events.k8s.io events in this form")
        inner = Target(core, target.namespace, target.name)
        if ask.verb == "create":
            stored = self._writer.create(inner, to_core(body), options)
            return Answer(dumped(from_core(stored.obj)), 201)
        stored, _ = self._writer.patch(inner, "application/merge-patch+json", to_core(body), options)
        return Answer(dumped(from_core(stored.obj)))

    def _delete_collection(self, target: Target, ask: Ask, body: Json, options: Options) -> Answer:
        page = self._reader.list(target.resource, target.namespace, ask.query)
        for one in page.items:
            meta = one.obj["metadata"]
            self._writer.delete(
                Target(target.resource, meta.get("namespace", ""), meta["name"]), body, options
            )
        return Answer(listing(target.resource, page.metadata(), page.items))

    def _act(self, target: Target, body: Json, options: Options) -> Json:
        if target.subresource == "binding":
            return self._actions.bind(target, body)
        if target.subresource == "eviction":
            return self._actions.evict(target, body, options)
        return self._actions.token(target, body)

    def _review(self, resource: Resource, user: User, body: Json) -> Json:
        answer = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": {}}
        if resource.kind == "SelfSubjectReview":
            info = {"username": user.name, "groups": list(user.groups), "uid": user.uid, "extra": user.extra}
            return answer | {"status": {"userInfo": info}}
        spec = body.get("spec") or {}
        asked = spec.get("resourceAttributes") or {}
        if asked:
            names = ("verb", "group", "resource", "subresource", "namespace", "name")
            want = rbac.Attributes(*(asked.get(name, "") for name in names))
        else:
            urls = spec.get("nonResourceAttributes") or {}
            want = rbac.Attributes(urls.get("verb", ""), path=urls.get("path", ""))
        return answer | {"spec": spec, "status": {"allowed": self._rbac.allows(user, want)}}


def _options(request: web.Request, user: User, ask: Ask) -> Options:
    manager = ask.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").split("/")[0]
    if request.content_type == "application/apply-patch+yaml" and not ask.query.get("fieldManager"):
        cause = errors.Cause(
            "fieldManager", "Required value: is required for apply patch", "FieldValueRequired"
        )
        raise errors.invalid("PatchOptions", "meta.k8s.io", "", [cause])
    force, dry_run = ask.query.get("force") in {"true", "1"}, ask.query.get("dryRun") == "All"
    return Options(user, manager, ask.query.get("fieldValidation") or "Warn", force, dry_run)


def _written(
    request: web.Request, resource: Resource, ask: Ask, stored: Stored, code: int, options: Options
) -> Answer:
    version = stored.obj["metadata"].get("resourceVersion", "")
    return Answer(renderer(request, resource, ask)(stored), code, version, options.warnings)


def _deleted(target: Target, stored: Stored) -> Answer:
    meta = stored.obj["metadata"]
    version = meta.get("resourceVersion", "")
    if target.resource.plural in _RETURNED_WHEN_DELETED:
        return Answer(stored.json, 200, version)
    details = {"name": target.name, "kind": target.resource.plural, "uid": meta["uid"]}
    details |= {"group": target.resource.group} if target.resource.group else {}
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
    return Answer(dumped(body), 200, version)
