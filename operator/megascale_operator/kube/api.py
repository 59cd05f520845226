"""What the operator and the driver ask of a cluster. Implementations: `client.RestApi`, fakes in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from megascale_operator.kube.resources import Obj, Resource

PatchKind = Literal["merge", "json"]
Propagation = Literal["Background", "Foreground", "Orphan"]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list; `next` is "" on the last one."""

    items: list[Obj]
    resource_version: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """ADDED, MODIFIED, DELETED or BOOKMARK, with the object (a bookmark: only its resourceVersion)."""

    type: str
    object: Obj


class KubeApi(Protocol):
    """Every call raises `ApiError` or `ApiUnreachableError`; bodies and answers are plain JSON values."""

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Obj: ...

    async def list_page(
        self,
        resource: Resource,
        namespace: str = "",
        *,
        selector: str = "",
        field: str = "",
        limit: int = 500,
        after: str = "",
    ) -> Page: ...

    def watch(
        self, resource: Resource, namespace: str = "", *, selector: str = "", field: str = "", since: str
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]:
        """Changes after `since`; ends when the server ends it.

        Raises:
            GoneError: `since` is too old.
            ApiUnreachableError: not even a bookmark came for the silence bound.
        """
        ...

    async def create(self, resource: Resource, body: Obj, namespace: str = "") -> Obj: ...

    async def apply(
        self, resource: Resource, body: Obj, namespace: str = "", *, manager: str, subresource: str = ""
    ) -> Obj:
        """Server-side apply, forced: `body` holds exactly the fields that `manager` owns."""
        ...

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
        """A merge patch (an object) or a JSON patch (a list of operations)."""
        ...

    async def replace(self, resource: Resource, body: Obj, namespace: str = "") -> Obj:
        """Replace; with `metadata.resourceVersion` in the body only if nobody wrote since."""
        ...

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
        """Delete; with `uid` only that very object. An object that is gone is no error."""
        ...

    async def delete_collection(self, resource: Resource, namespace: str, *, selector: str) -> None: ...
