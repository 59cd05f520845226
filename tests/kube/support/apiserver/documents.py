"""Responses to paths that name no resource."""

from __future__ import annotations

from apiserver.authn import Tokens
from apiserver.discovery import VERSION, Discovery
from apiserver.errors import Json
from apiserver.resources import Registry

OPEN = frozenset(("/healthz", "/livez", "/readyz", "/version"))
"""Paths that need no authorization."""
JWKS, JWKS_TYPE = "/openid/v1/jwks", "application/jwk-set+json"
"""The only document that is not served as application/json."""


class Documents:
    """Discovery, OpenAPI and OpenID documents by path."""

    def __init__(self, registry: Registry, tokens: Tokens) -> None:
        self._discovery = Discovery(registry)
        self._tokens = tokens

    def find(self, path: str, base_url: str) -> Json | None:
        """Return the document of a path, None if there is none."""
        match [part for part in path.split("/") if part]:
            case ["version"]:
                return VERSION
            case ["openapi", "v3", *where]:
                return self._discovery.openapi("/".join(where)) if where else self._discovery.openapi_index()
            case ["openid", "v1", "jwks"]:
                return self._tokens.jwks()
            case [".well-known", "openid-configuration"]:
                return self._tokens.configuration(base_url)
            case ["api" | "apis", *where]:
                return self._groups(path.startswith("/apis"), where)
        return None

    def _groups(self, named: bool, where: list[str]) -> Json | None:
        match where:
            case []:
                return self._discovery.groups() if named else self._discovery.core_versions()
            case [version] if not named:
                return self._discovery.resources("", version)
            case [group]:
                return self._discovery.group(group)
            case [group, version]:
                return self._discovery.resources(group, version)
        return None
