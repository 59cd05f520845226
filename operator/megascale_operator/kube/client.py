"""`KubeApi` over the raw responses of `kubernetes.aio`: plain JSON bodies, a timeout on every request."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Final, Self
from urllib.parse import urlencode

import aiohttp
import orjson
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject, RESTResponse

from megascale_operator.kube.api import Page, PatchKind, Propagation, WatchEvent
from megascale_operator.kube.config import load_configuration
from megascale_operator.kube.errors import (
    ApiError,
    ApiUnreachableError,
    NotFoundError,
    OverloadedError,
    error_of,
)
from megascale_operator.kube.resources import Obj, Resource, name_of

REQUEST_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 70.0
"""A watch that receives no data for this long is treated as broken."""
_WATCH_S: Final = (40, 60)
"""Range of timeoutSeconds, shorter than SILENCE_S: the API server sends no bookmarks for a resource that
never changed, so a healthy watch must end before it looks broken."""
_ATTEMPTS: Final = 4
_FIRST_DELAY_S: Final = 0.2
_MAX_DELAY_S: Final = 5.0
_PATCH_TYPES: Final = {"merge": "application/merge-patch+json", "json": "application/json-patch+json"}
_APPLY_TYPE: Final = "application/apply-patch+yaml"
_ACCEPT: Final = "application/json, application/jwk-set+json"
"""`/openid/v1/jwks` is served only as application/jwk-set+json."""
_UNREACHABLE: Final = (aiohttp.ClientError, TimeoutError, OSError)


class RestApi:
    """A client for one API server. Use it as an async context manager, or call `close`.

    Args:
        guard: called before every write, and again once the write has a connection, directly before it is
            sent; returns the seconds the write may take, or raises to prevent it.
        timeout_s: timeout of one request in seconds.
        tries: attempts for reads, and for writes that the server rejected as overloaded.
        agent: User-Agent header, as it appears in the API server's audit log.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        guard: Callable[[], float] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        tries: int = _ATTEMPTS,
        agent: str = "megascale",
    ) -> None:
        self._configuration = configuration
        self._reads = RESTClientObject(configuration)
        self._guard = guard
        self._timeout_s = timeout_s
        self._tries = tries
        self._agent = agent
        self._writes_in_flight = 0
        self._writes_done = asyncio.Event()
        self._writes = self._reads if guard is None else _guarded_client(configuration, guard)

    @classmethod
    async def connect(cls, kubeconfig: Path | None, *, agent: str = "megascale") -> RestApi:
        """Return a client for the cluster of `kubeconfig`, or with None for the cluster this pod runs in."""
        return cls(await load_configuration(kubeconfig), agent=agent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._reads.close()
        if self._writes is not self._reads:
            await self._writes.close()

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Obj:
        return await self._call("GET", resource.path(namespace, name))

    async def get_path(self, path: str) -> Obj:
        """GET a path that is not a resource, such as `/openid/v1/jwks` or `/version`."""
        return await self._call("GET", path)

    async def list_page(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        selector: str = "",
        field: str = "",
        limit: int = 500,
        after: str = "",
    ) -> Page:
        query = {
            "limit": str(limit), "labelSelector": selector, "fieldSelector": field, "continue": after,
        }  # fmt: skip
        found = await self._call("GET", resource.path(namespace), query)
        meta = found["metadata"]
        return Page(
            found.get("items") or [], str(meta.get("resourceVersion", "")), meta.get("continue") or ""
        )

    @asynccontextmanager
    async def watch(
        self, resource: Resource, namespace: str = "", *, selector: str = "", field: str = "", since: str
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "labelSelector": selector,
            "fieldSelector": field,
            "resourceVersion": since,
            "timeoutSeconds": str(random.randint(*_WATCH_S)),
        }
        operation = f"watch {resource.plural}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=SILENCE_S)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                response = await self._send(
                    self._reads, "GET", resource.path(namespace), query, None, "", timeout
                )
                if response.status != 200:
                    raise _refusal(operation, response, await _read(response))
        except _UNREACHABLE as error:
            raise ApiUnreachableError(f"{operation}: the API server does not respond: {error}") from error
        try:
            yield _events(operation, response.response)
        finally:
            response.response.close()

    async def create(self, resource: Resource, body: Obj, namespace: str = "") -> Obj:
        return await self._call("POST", resource.path(namespace), body=body)

    async def apply(
        self, resource: Resource, body: Obj, namespace: str = "", *, manager: str, subresource: str = ""
    ) -> Obj:
        query = {"fieldManager": manager, "force": "true"}
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **body}
        path = resource.path(namespace, name_of(body), subresource)
        return await self._call("PATCH", path, query, body, _APPLY_TYPE)

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,  # noqa: ANN401
        namespace: str = "",
        *,
        kind: PatchKind = "merge",
        subresource: str = "",
    ) -> Obj:
        path = resource.path(namespace, name, subresource)
        return await self._call("PATCH", path, body=patch, content_type=_PATCH_TYPES[kind])

    async def replace(self, resource: Resource, body: Obj, namespace: str = "") -> Obj:
        return await self._call("PUT", resource.path(namespace, name_of(body)), body=body)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        grace_s: int | None = None,
        propagation: Propagation = "Background",
    ) -> None:
        options: Obj = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            await self._call("DELETE", resource.path(namespace, name), body=options)
        except NotFoundError:
            return

    async def delete_collection(self, resource: Resource, namespace: str, *, selector: str) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        await self._call("DELETE", resource.path(namespace), {"labelSelector": selector}, options)

    async def _call(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Any = None,  # noqa: ANN401
        content_type: str = "application/json",
    ) -> Obj:
        """Send a request, with retries where they are safe: reads, and writes that the server rejected."""
        for attempt in range(1, self._tries + 1):
            try:
                return await self._request(method, path, query or {}, body, content_type)
            except OverloadedError as error:
                rejected = error.status == 429 or error.retry_after_s is not None
                if attempt == self._tries or not (rejected or method == "GET"):
                    raise
                delay_s = error.retry_after_s
            except ApiUnreachableError:
                if attempt == self._tries or method != "GET":
                    raise
                delay_s = None
            backoff_s = random.uniform(0.5, 1.0) * _FIRST_DELAY_S * 2**attempt
            await asyncio.sleep(min(_MAX_DELAY_S, max(delay_s or 0.0, backoff_s)))
        raise AssertionError("the last attempt either returns or raises")

    async def wait_for_writes(self, timeout_s: float) -> None:
        """Wait until no write is in flight, for at most `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._writes_in_flight:
                    self._writes_done.clear()
                    await self._writes_done.wait()

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str],
        body: Any,  # noqa: ANN401
        content_type: str,
    ) -> Obj:
        reading = method == "GET"
        client = self._reads if reading else self._writes
        limit_s = self._timeout_s
        if self._guard is not None and not reading:
            limit_s = min(limit_s, self._guard())
        operation = f"{method} {path}"
        self._writes_in_flight += not reading
        try:
            async with asyncio.timeout(limit_s):
                response = await self._send(
                    client, method, path, query, body, content_type, aiohttp.ClientTimeout(total=limit_s)
                )
                content = await _read(response)
        except _UNREACHABLE as error:
            message = str(error) or f"no response within {limit_s:g} s"
            raise ApiUnreachableError(f"{operation}: the API server does not respond: {message}") from error
        finally:
            self._writes_in_flight -= not reading
            self._writes_done.set()
        if not 200 <= response.status < 300:
            raise _refusal(operation, response, content)
        return _object_of(operation, content)

    async def _send(
        self,
        client: RESTClientObject,
        method: str,
        path: str,
        query: dict[str, str],
        body: Any,  # noqa: ANN401
        content_type: str,
        timeout: aiohttp.ClientTimeout,
    ) -> RESTResponse:
        headers = {"Accept": _ACCEPT, "User-Agent": self._agent}
        if content_type:
            headers["Content-Type"] = content_type
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["Authorization"] = token
        query_string = urlencode({name: value for name, value in query.items() if value})
        url = f"{self._configuration.host}{path}{f'?{query_string}' if query_string else ''}"
        response: RESTResponse = await client.request(  # type: ignore[no-untyped-call]
            method, url, headers=headers, body=body, _request_timeout=timeout
        )
        return response


def _guarded_client(configuration: Configuration, guard: Callable[[], float]) -> RESTClientObject:
    """Return a client that calls `guard` again once a request has its connection.

    A process can be paused (SIGSTOP) while a write waits for a connection. Without the second call it would
    send that write on resuming, although the Lease has expired in the meantime.
    """

    async def check(_session: aiohttp.ClientSession, _context: SimpleNamespace, _params: object) -> None:
        guard()

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(check)
    trace.on_connection_create_end.append(check)
    guarded = copy.copy(configuration)
    guarded.trace_configs = [trace]
    return RESTClientObject(guarded)


async def _read(response: RESTResponse) -> bytes:
    content: bytes = await response.read()  # type: ignore[no-untyped-call]
    return content


async def _events(operation: str, response: aiohttp.ClientResponse) -> AsyncIterator[WatchEvent]:
    try:
        async for line in response.content:
            if not line.strip():
                continue
            event = orjson.loads(line)
            if event["type"] == "ERROR":
                status = event["object"]
                raise error_of(operation, int(status.get("code", 500)), status)
            yield WatchEvent(event["type"], event["object"])
    except _UNREACHABLE as error:
        raise ApiUnreachableError(
            f"{operation}: the watch connection broke: {error or type(error).__name__}"
        ) from error
    except ValueError as error:
        raise ApiUnreachableError(f"{operation}: the watch returned malformed JSON: {error}") from error


def _refusal(operation: str, response: RESTResponse, content: bytes) -> ApiError:
    try:
        answer = orjson.loads(content)
    except ValueError:
        answer = None
    retry = response.headers.get("Retry-After", "")
    return error_of(
        operation,
        response.status,
        answer if isinstance(answer, dict) else None,
        float(retry) if retry.isdigit() else None,
    )


def _object_of(operation: str, content: bytes) -> Obj:
    try:
        found: Obj = orjson.loads(content)
    except ValueError as error:
        raise ApiUnreachableError(f"{operation}: the response is not JSON: {error}") from error
    return found
