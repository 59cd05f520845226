"""Encodes objects in responses: as JSON, as the other Event version, or as a Table."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from apiserver.errors import ApiError, Json
from apiserver.eventsapi import from_core
from apiserver.requests import Ask, wants_table
from apiserver.resources import Resource
from apiserver.store import Stored
from apiserver.tables import Printer

_COMPRESSED_BYTES, _LEVEL = 128 * 1024, 1
"""Least size in bytes and level of gzip compression, as in a real server."""


@dataclass
class Answer:
    """A complete response; `version` is the resourceVersion that a write produced."""

    body: bytes
    code: int = 200
    version: str = ""
    warnings: list[str] = field(default_factory=list)

    def response(self, request: web.Request) -> web.Response:
        response = web.Response(body=self.body, status=self.code, content_type="application/json")
        if len(self.body) > _COMPRESSED_BYTES and "gzip" in request.headers.get("Accept-Encoding", ""):
            response.body = gzip.compress(self.body, _LEVEL)
            response.headers["Content-Encoding"] = "gzip"
        for warning in self.warnings:
            response.headers.add("Warning", f"299 - {json.dumps(warning)}")
        return response


def dumped(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def refused(error: ApiError) -> web.Response:
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
    body = dumped(error.body())
    return web.Response(body=body, status=error.code, content_type="application/json", headers=headers)


def encoder(resource: Resource) -> Callable[[Stored], bytes]:
    """Return the function that encodes one object of a resource."""
    if resource.group == "events.k8s.io":
        return lambda stored: dumped(from_core(stored.obj))
    return lambda stored: stored.json


def renderer(request: web.Request, resource: Resource, ask: Ask) -> Callable[[Stored], bytes]:
    """Return the function that encodes an object as requested; a watch sends column definitions once."""
    if not wants_table(request):
        return encoder(resource)
    printer, first = Printer(resource, ask.query.get("includeObject", "")), [True]

    def render(stored: Stored) -> bytes:
        version = {"resourceVersion": stored.obj["metadata"]["resourceVersion"]}
        table = printer.table([stored.obj], version, headers=first[0])
        first[0] = False
        return dumped(table)

    return render


def listing(resource: Resource, metadata: Json, items: list[Stored]) -> bytes:
    head = {"kind": resource.kind + "List", "apiVersion": resource.api_version, "metadata": metadata}
    encode = encoder(resource)
    return dumped(head)[:-1] + b',"items":[' + b",".join(encode(one) for one in items) + b"]}"


def table(request_query: dict[str, str], resource: Resource, metadata: Json, items: list[Stored]) -> bytes:
    printer = Printer(resource, request_query.get("includeObject", ""))
    return dumped(printer.table([one.obj for one in items], metadata))
