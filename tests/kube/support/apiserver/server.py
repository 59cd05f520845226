"""The HTTP server: authentication, authorization, routing, responses, audit."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from apiserver import errors, rbac
from apiserver.admission import Admission
from apiserver.answers import Answer, dumped, listing, refused, renderer, table
from apiserver.audit import Audit
from apiserver.authn import Tokens, User, unauthorized
from apiserver.bootstrap import bootstrap
from apiserver.customs import CustomResources
from apiserver.dispatch import Dispatch
from apiserver.documents import JWKS, JWKS_TYPE, OPEN, Documents
from apiserver.errors import ApiError
from apiserver.podactions import Actions
from apiserver.reads import Filter, Reader
from apiserver.requests import Ask, accepts, parse, read_body, wants_table
from apiserver.resources import Registry, Resource
from apiserver.store import Store
from apiserver.target import Target
from apiserver.writes import Writer

_WATCH_CHUNK = 1 << 20
_LARGEST_BODY = 3 << 20
_ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


@dataclass(frozen=True)
class Settings:
    """Settings. Times in seconds; `window`: changes kept for watches, per resource."""

    bookmark_s: float = 20.0
    window: int = 20_000


class ApiServer:
    """Connects the parts and handles requests."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.store = Store(settings.window)
        self.registry = Registry()
        self.tokens = Tokens(self._exists)
        self._rbac = rbac.Rbac(self.store)
        admission = Admission(self.store, self.registry, self._rbac)
        self.writer = Writer(self.store, admission)
        self._reader = Reader(self.store, settings.bookmark_s)
        actions = Actions(self.store, self.writer, self.tokens)
        self._dispatch = Dispatch(self.registry, self.writer, self._reader, actions, self._rbac)
        self._documents = Documents(self.registry, self.tokens)
        self._audit = Audit(folder / "audit.jsonl")
        self._streams: set[asyncio.Task[Any]] = set()
        self.base_url = ""
        CustomResources(self.store, self.registry, admission, self.writer)
        bootstrap(self.writer, self.registry)

    def compact(self) -> None:
        """Drop history: resumed watches and continue tokens then get 410."""
        self.store.compact()
        self._reader.forget()

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_LARGEST_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.on_shutdown.append(self._close)
        return app

    async def _close(self, _: web.Application) -> None:
        for task in self._streams:
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        self._audit.close()

    def _exists(self, resource: str, namespace: str, name: str, uid: str) -> bool:
        found = self.store.get(resource, namespace, name)
        return found is not None and found.obj["metadata"]["uid"] == uid

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        user: User | None = None
        ask = Ask(request.method.lower(), request.path, {})
        try:
            user = self._authenticate(request)
            ask = parse(request, self.registry)
            self._authorize(user, ask)
            if ask.verb == "watch" and ask.resource:
                return await self._watch(request, user, ask, ask.resource)
            answer = await self._answer(request, user, ask)
        except ApiError as error:
            self._record(request, user, ask, error.code)
            return refused(error)
        self._record(request, user, ask, answer.code, answer.version)
        return answer.response(request)

    def _record(
        self, request: web.Request, user: User | None, ask: Ask, code: int, version: str = ""
    ) -> None:
        self._audit.write(user, ask.attributes, code, request.headers.get("User-Agent", ""), version)

    def _authenticate(self, request: web.Request) -> User:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer" and token:
            return self.tokens.authenticate(token.strip())
        if request.path in OPEN:
            return _ANONYMOUS
        raise unauthorized()

    def _authorize(self, user: User, ask: Ask) -> None:
        want = ask.attributes
        if want.path in OPEN or self._rbac.allows(user, want):
            return
        why = rbac.refusal(user, want)
        if want.path:
            raise ApiError(403, "Forbidden", f"forbidden: {why}")
        raise errors.forbidden(want.resource, want.group, want.name, why)

    async def _answer(self, request: web.Request, user: User, ask: Ask) -> Answer:
        resource = ask.resource
        if resource is None:
            return self._document(request, ask)
        if ask.subresource and ask.subresource not in resource.subresources:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        if not ask.subresource and ask.verb not in resource.verbs:
            message = "the server does not allow this method on the requested resource"
            raise ApiError(405, "MethodNotAllowed", message)
        if ask.verb in {"get", "list"}:
            return self._read(request, resource, ask)
        return self._dispatch.write(request, user, resource, ask, await read_body(request))

    def _document(self, request: web.Request, ask: Ask) -> Answer:
        if ask.path in OPEN and ask.path != "/version":
            return Answer(b"ok")
        if ask.path == JWKS and not accepts(request, JWKS_TYPE):
            message = f"Not Acceptable\n\nAvailable representations: {JWKS_TYPE}"
            raise ApiError(406, "NotAcceptable", message)
        found = self._documents.find(ask.path, self.base_url)
        if found is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        return Answer(dumped(found))

    def _read(self, request: web.Request, resource: Resource, ask: Ask) -> Answer:
        if ask.subresource not in {"", "status"}:
            raise errors.not_implemented(f"reading {resource.plural}/{ask.subresource}")
        namespace = ask.namespace if resource.namespaced else ""
        if ask.verb == "get":
            target = Target(resource, namespace, ask.name)
            found = self.store.get(target.key, target.namespace, target.name)
            if found is None:
                raise target.not_found()
            return Answer(renderer(request, resource, ask)(found))
        page = self._reader.list(resource, namespace, ask.query)
        if wants_table(request):
            return Answer(table(ask.query, resource, page.metadata(), page.items))
        return Answer(listing(resource, page.metadata(), page.items))

    async def _watch(
        self, request: web.Request, user: User, ask: Ask, resource: Resource
    ) -> web.StreamResponse:
        if ask.query.get("sendInitialEvents"):
            why = "Forbidden: sendInitialEvents is forbidden unless the WatchList feature gate is enabled"
            cause = errors.Cause("sendInitialEvents", why, "FieldValueForbidden")
            raise errors.invalid("ListOptions", "meta.k8s.io", "", [cause])
        namespace = ask.namespace if resource.namespaced else ""
        # A malformed selector is refused before the stream starts.
        Filter.of(resource, namespace, ask.query)
        self._record(request, user, ask, 200)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        task = asyncio.current_task()
        if task:
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        try:
            render = renderer(request, resource, ask)
            async for lines in self._reader.watch(resource, namespace, ask.query, render):
                for start in range(0, len(lines), _WATCH_CHUNK):
                    await response.write(lines[start : start + _WATCH_CHUNK])
            await response.write_eof()
        except ConnectionError:
            # The client disconnected; no response can be sent.
            return response
        return response
