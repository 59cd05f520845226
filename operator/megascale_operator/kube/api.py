"""The API server calls that the operator and the driver use; implemented by `client.RestApi`."""

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
    """One page of a list; `next` is the continue token, "" on the last page."""

    items: list[Obj]
    resource_version: str
    next: str = ""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One watch event: `type` is ADDED, MODIFIED, DELETED or BOOKMARK.

    The object of a BOOKMARK has only its resourceVersion.
    """

    type: str
    object: Obj


class KubeApi(Protocol):
    """Requests to one API server. Request and response bodies are plain JSON values.

    An empty `namespace` addresses a cluster-scoped object, or for lists and watches all namespaces.

    Raises (every call):
        ApiError: the API server refused the request.
        ApiUnreachableError: there was no response in time; a write may or may not have been applied.
    """

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
        """Watch changes after the resourceVersion `since`, until the server closes the watch.

        Raises:
            GoneError: `since` is too old; list again.
            ApiUnreachableError: nothing arrived for `client.SILENCE_S` seconds, not even a bookmark.
        """
        ...

    async def create(self, resource: Resource, body: Obj, namespace: str = "") -> Obj: ...

    async def apply(
        self, resource: Resource, body: Obj, namespace: str = "", *, manager: str, subresource: str = ""
    ) -> Obj:
        """Server-side apply with force; `body` must hold exactly the fields that `manager` owns."""
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
        """Apply a merge patch (`patch` is an object) or a JSON patch (`patch` is a list of operations)."""
        ...

    async def replace(self, resource: Resource, body: Obj, namespace: str = "") -> Obj:
        """Replace an object.

        Raises:
            ConflictError: the body has a `metadata.resourceVersion` that is no longer the current one.
        """
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
        """Delete an object; if it does not exist, do nothing.

        Args:
            uid: delete only an object with this uid; "" accepts any.
            grace_s: grace period in seconds; None uses the object's own.
        """
        ...

    async def delete_collection(self, resource: Resource, namespace: str, *, selector: str) -> None: ...
