"""Parsing of HTTP requests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import web

from apiserver import errors
from apiserver.errors import Json
from apiserver.rbac import Attributes
from apiserver.resources import Registry, Resource

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NAMESPACE_SUBRESOURCES = frozenset(("status", "finalize"))


@dataclass(frozen=True)
class Ask:
    """A parsed request. `resource` is None for paths that name none."""

    verb: str
    path: str
    query: dict[str, str]
    resource: Resource | None = None
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def attributes(self) -> Attributes:
        if self.resource is None:
            return Attributes(self.verb, path=self.path)
        return Attributes(
            self.verb, self.resource.group, self.resource.plural, self.subresource, self.namespace, self.name
        )


def parse(request: web.Request, registry: Registry) -> Ask:
    """Parse a request. Raises: 404 if the group, version or resource is not served."""
    query = dict(request.query)
    parts = [part for part in request.path.split("/") if part]
    if not parts or parts[0] not in {"api", "apis"}:
        return Ask(request.method.lower(), request.path, query)
    head = 2 if parts[0] == "api" else 3
    if len(parts) <= head:
        return Ask(request.method.lower(), request.path, query)
    group, version = ("", parts[1]) if head == 2 else (parts[1], parts[2])
    namespace, rest = _split_namespace(parts[head:])
    resource = registry.find(group, version, rest[0])
    if (
        resource is None
        or len(rest) > 3
        or (bool(namespace) and not resource.namespaced and rest[0] != "namespaces")
    ):
        raise errors.ApiError(404, "NotFound", "the server could not find the requested resource")
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    fields = query.get("fieldSelector", "")
    if not name and fields.startswith("metadata.name=") and "," not in fields:
        # The authorizer treats a list or watch of one name as a request for that name.
        asked = fields.removeprefix("metadata.name=").lstrip("=")
        return Ask(_verb(request, query, ""), request.path, query, resource, namespace, asked, subresource)
    return Ask(_verb(request, query, name), request.path, query, resource, namespace, name, subresource)


def _split_namespace(parts: list[str]) -> tuple[str, list[str]]:
    if parts[0] == "namespaces" and len(parts) > 2 and parts[2] not in _NAMESPACE_SUBRESOURCES:
        return parts[1], parts[2:]
    if parts[0] == "namespaces" and len(parts) > 1:
        return parts[1], parts
    return "", parts


def _verb(request: web.Request, query: dict[str, str], name: str) -> str:
    if request.method in {"GET", "HEAD"}:
        if query.get("watch") in {"true", "1"}:
            return "watch"
        return "get" if name else "list"
    if request.method == "DELETE" and not name:
        return "deletecollection"
    return _VERBS.get(request.method, request.method.lower())


async def read_body(request: web.Request) -> Any:
    """Return the decoded body, {} if there is none. Raises: 400, 415."""
    raw = await request.read()
    if not raw:
        return {}
    if "protobuf" in request.content_type:
        raise errors.unsupported_media("", ["application/json", "application/yaml"])
    try:
        return json.loads(raw)
    except ValueError:
        return _from_yaml(raw)


class _Loader(yaml.CSafeLoader):
    """A YAML loader that keeps timestamps as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def _from_yaml(raw: bytes) -> Json:
    try:
        found: Json = yaml.load(raw, Loader=_Loader)
    except yaml.YAMLError as error:
        raise errors.bad_request(f"error decoding: {error}") from None
    return found


def accepts(request: web.Request, media: str) -> bool:
    """Return whether the client accepts responses of that media type."""
    given = request.headers.get("Accept", "*/*").split(",")
    return not {media, "*/*", "application/*"}.isdisjoint(part.partition(";")[0].strip() for part in given)


def wants_table(request: web.Request) -> bool:
    """Return whether the client prefers a Table of version v1."""
    for part in request.headers.get("Accept", "").split(","):
        if "as=Table" in part and "v=v1" in part and "v1beta1" not in part:
            return True
        if part.strip().split(";")[0] in {"application/json", "*/*"} and "as=" not in part:
            return False
    return False
