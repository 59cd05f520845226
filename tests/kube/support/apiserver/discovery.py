"""Discovery for kubectl: groups, resources, and the OpenAPI v3 documents."""

from __future__ import annotations

from typing import Any

from apiserver.errors import Json
from apiserver.resources import Registry, Resource
from apiserver.typed import copy, definitions

VERSION = {
    "major": "1",
    "minor": "33",
    "gitVersion": "v1.33.0",
    "gitCommit": "double",
    "gitTreeState": "clean",
    "buildDate": "2025-04-23T13:00:00Z",
    "goVersion": "go1.24.2",
    "compiler": "gc",
    "platform": "linux/amd64",
}
_REF = "#/components/schemas/"
_PATCH_TYPES = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")


class Discovery:
    """Discovery documents of the registry; OpenAPI documents are built on request."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def core_versions(self) -> Json:
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}

    def groups(self) -> Json:
        versions: dict[str, list[str]] = {}
        for resource in self._registry.all():
            if resource.group and resource.version not in versions.setdefault(resource.group, []):
                versions[resource.group].append(resource.version)
        return {
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [_group(*pair) for pair in versions.items()],
        }

    def group(self, name: str) -> Json | None:
        found = next((one for one in self.groups()["groups"] if one["name"] == name), None)
        return {"kind": "APIGroup", "apiVersion": "v1"} | found if found else None

    def resources(self, group: str, version: str) -> Json | None:
        served = [one for one in self._registry.all() if (one.group, one.version) == (group, version)]
        if not served:
            return None
        text = f"{group}/{version}" if group else version
        listed = [entry for resource in served for entry in _entries(resource)]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": text, "resources": listed}

    def openapi_index(self) -> Json:
        paths = {}
        for resource in self._registry.all():
            where = _root(resource)
            paths[where] = {"serverRelativeURL": f"/openapi/v3/{where}"}
        return {"paths": paths}

    def openapi(self, where: str) -> Json | None:
        """Return the OpenAPI v3 document of `api/v1` or `apis/GROUP/VERSION`."""
        served = [one for one in self._registry.all() if _root(one) == where]
        if not served:
            return None
        schemas: Json = {}
        paths: Json = {}
        for resource in served:
            name = resource.definition or f"{_reversed(resource.group)}.{resource.version}.{resource.kind}"
            _add_schema(schemas, name, _schema(resource))
            paths |= _paths(resource, name)
        info = {"title": "Kubernetes", "version": "v1.33.0"}
        return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _root(resource: Resource) -> str:
    return f"apis/{resource.group}/{resource.version}" if resource.group else f"api/{resource.version}"


def _reversed(group: str) -> str:
    return ".".join(reversed(group.split(".")))


def _group(name: str, versions: list[str]) -> Json:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _entries(resource: Resource) -> list[Json]:
    entry: Json = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": sorted(resource.verbs),
    }
    entry |= {"shortNames": list(resource.short_names)} if resource.short_names else {}
    entry |= {"categories": list(resource.categories)} if resource.categories else {}
    entries = [entry]
    for sub in resource.subresources:
        verbs = ["create"] if sub in {"token", "eviction", "binding"} else ["get", "patch", "update"]
        kind = {"token": "TokenRequest", "eviction": "Eviction", "binding": "Binding"}.get(sub, resource.kind)
        part: Json = {
            "name": f"{resource.plural}/{sub}",
            "singularName": "",
            "namespaced": resource.namespaced,
        }
        entries.append(part | {"kind": kind, "verbs": ["get"] if sub == "log" else verbs})
    return entries


def _schema(resource: Resource) -> Json:
    if resource.definition:
        return definitions()[resource.definition]
    schema: Json = copy(resource.schema)
    schema.setdefault("properties", {})["metadata"] = {
        "$ref": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    }
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    return schema | {"x-kubernetes-group-version-kind": [gvk]}


def _add_schema(schemas: Json, name: str, schema: Json) -> None:
    """Add a schema and everything it refers to."""
    if name in schemas:
        return
    schemas[name] = {}
    schemas[name] = _published(schemas, schema)


def _published(schemas: Json, value: Any) -> Any:
    if isinstance(value, list):
        return [_published(schemas, one) for one in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("$ref"), str):
        name = value["$ref"]
        _add_schema(schemas, name, definitions()[name])
        text = {"description": value["description"]} if "description" in value else {}
        return {"allOf": [{"$ref": _REF + name}]} | text
    found = {name: _published(schemas, one) for name, one in value.items()}
    if isinstance(found.get("type"), list):
        kinds = [one for one in found["type"] if one != "null"]
        found["type"] = kinds[0] if kinds else "object"
    return found


def _paths(resource: Resource, name: str) -> Json:
    space = "/namespaces/{namespace}" if resource.namespaced else ""
    url = f"/{_root(resource)}{space}/{resource.plural}/{{name}}"
    gvk = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    parameters = [
        {"name": one, "in": "query", "schema": {"type": "string"}}
        for one in ("dryRun", "fieldManager", "fieldValidation")
    ]
    types = _PATCH_TYPES if resource.is_custom else (*_PATCH_TYPES, "application/strategic-merge-patch+json")
    body = {kind: {"schema": {"type": "object"}} for kind in types}
    answer = {
        "200": {"description": "OK", "content": {"application/json": {"schema": {"$ref": _REF + name}}}}
    }
    base = {"parameters": parameters, "responses": answer, "x-kubernetes-group-version-kind": gvk}
    patch = base | {"x-kubernetes-action": "patch", "requestBody": {"content": body}}
    return {url: {"patch": patch, "get": base | {"x-kubernetes-action": "get"}}}
