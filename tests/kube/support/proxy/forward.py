"""The listener of one client: applies faults, and forwards the other requests."""

from __future__ import annotations

import asyncio
import json
import ssl
import time

import aiohttp
from aiohttp import web
from rest import Cluster

from proxy.rules import Rule, Rules, status
from proxy.trail import Trail

_ABOUT_ONE_HOP = "connection keep-alive transfer-encoding te trailer upgrade"
_HOP = frozenset(f"{_ABOUT_ONE_HOP} content-length host".split())


class CutError(Exception):
    """The connection must be dropped here."""


class Listener:
    """The endpoint of `client`. It keeps its port when it is closed and opened again."""

    def __init__(
        self, client: str, cluster: Cluster, session: aiohttp.ClientSession, rules: Rules, trail: Trail
    ) -> None:
        self.client = client
        self._cluster, self._session, self._rules, self._trail = cluster, session, rules, trail
        self._app = web.Application(client_max_size=8 << 20)
        self._app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            self._app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        self._site: web.TCPSite | None = None
        self._context: ssl.SSLContext | None = None
        self._streams: dict[int, web.Request] = {}
        self.port = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def start(self, context: ssl.SSLContext) -> None:
        self._context = context
        await self._runner.setup()
        await self.open()

    async def open(self) -> None:
        """Listen (again)."""
        if self._site is None:
            self._site = web.TCPSite(
                self._runner, "127.0.0.1", self.port, ssl_context=self._context, reuse_address=True
            )
            await self._site.start()
            self.port = int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Refuse connections, and drop the open ones."""
        if self._site:
            await self._site.stop()
            self._site = None
        server = self._runner.server
        if server:
            for connection in list(server.connections):
                if connection.transport:
                    connection.transport.abort()

    async def stop(self) -> None:
        await self._runner.cleanup()

    def cut(self) -> None:
        """Drop every connection with a response in progress."""
        for request in list(self._streams.values()):
            _drop(request)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        began = time.time()
        rule = self._rules.take(self.client, request.method, request.path_qs)
        fault = rule.action if rule else ""
        code = 0
        try:
            response = await self._answer(request, rule)
            code = response.status
        except CutError:
            _drop(request)
            raise asyncio.CancelledError from None
        except (aiohttp.ClientError, TimeoutError):
            code = 502
            response = web.json_response(status(503), status=503)
        finally:
            self._trail.write(self.client, request, began, code, fault)
        return response

    async def _answer(self, request: web.Request, rule: Rule | None) -> web.StreamResponse:
        if rule and rule.action == "answer":
            headers = {"Retry-After": str(rule.retry_after)} if rule.retry_after else {}
            return web.json_response(status(rule.code, rule.retry_after), status=rule.code, headers=headers)
        if rule and rule.action == "expire":
            line = json.dumps({"type": "ERROR", "object": status(410)}) + "\n"
            return web.Response(text=line, content_type="application/json")
        if rule and rule.action == "delay":
            await asyncio.sleep(rule.seconds)
        if rule and rule.action == "cut" and rule.lines == 0:
            raise CutError
        await self._rules.gate(self.client, request.method, request.path_qs)
        return await self._forward(request, rule)

    async def _forward(self, request: web.Request, rule: Rule | None) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        body = await request.read()
        url = self._cluster.url + request.raw_path
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with self._session.request(
            request.method, url, data=body or None, headers=headers, timeout=timeout, allow_redirects=False
        ) as answer:
            if rule and rule.action == "lose":
                await answer.read()
                raise CutError
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if request.query.get("watch") not in {"true", "1"} and not (rule and rule.action == "cut"):
                return web.Response(body=await answer.read(), status=answer.status, headers=kept)
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            await self._stream(request, response, answer, rule.lines if rule and rule.action == "cut" else 0)
            return response

    async def _stream(
        self,
        request: web.Request,
        response: web.StreamResponse,
        answer: aiohttp.ClientResponse,
        cut_after: int,
    ) -> None:
        """Forward lines as they arrive; drop the connection after `cut_after` lines."""
        self._streams[id(request)] = request
        try:
            lines = 0
            while line := await answer.content.readline():
                await self._rules.gate(self.client, request.method, request.path_qs)
                await response.write(line)
                lines += 1
                if cut_after and lines >= cut_after and request.transport:
                    # The lines written so far arrive, the end of the response does not.
                    request.transport.close()
                    return
            await response.write_eof()
        except ConnectionError:
            # The client disconnected, or the test dropped the connection.
            return
        finally:
            del self._streams[id(request)]


def _drop(request: web.Request) -> None:
    if request.transport:
        request.transport.abort()
