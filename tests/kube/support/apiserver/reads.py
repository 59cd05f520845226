"""Paged lists, and watches with resume, bookmarks and 410."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

from apiserver import errors
from apiserver.errors import Json
from apiserver.resources import Resource, storage_key
from apiserver.selectors import FieldSelector, Matcher, label_matcher
from apiserver.store import Event, Store, Stored

_MOST_SNAPSHOTS = 64
Render = Callable[[Stored], bytes]
"""Encodes an object: as JSON, or as a Table row."""


@dataclass(frozen=True)
class Filter:
    """Selects the objects of a list or watch."""

    namespace: str
    labels: Matcher | None
    fields: FieldSelector

    @classmethod
    def of(cls, resource: Resource, namespace: str, query: dict[str, str]) -> Filter:
        fields = FieldSelector(query.get("fieldSelector", ""), resource.plural)
        return cls(namespace, label_matcher(query.get("labelSelector", "")), fields)

    def __call__(self, stored: Stored) -> bool:
        meta = stored.obj["metadata"]
        if self.namespace and meta.get("namespace") != self.namespace:
            return False
        if self.fields.name and meta["name"] != self.fields.name:
            return False
        if self.labels and not self.labels(meta.get("labels") or {}):
            return False
        return not self.fields.terms or self.fields(stored.obj)


@dataclass
class Page:
    """One page of a list."""

    items: list[Stored]
    version: int
    proceed: str = ""
    remaining: int = 0

    def metadata(self) -> Json:
        meta: Json = {"resourceVersion": str(self.version)}
        if self.proceed:
            meta |= {"continue": self.proceed, "remainingItemCount": self.remaining}
        return meta


class Reader:
    """Serves lists and watches from the store."""

    def __init__(self, store: Store, bookmark_s: float) -> None:
        self._store = store
        self._bookmark_s = bookmark_s
        self._snapshots: OrderedDict[str, Page] = OrderedDict()

    def forget(self) -> None:
        """Expire all continue tokens, as compaction does."""
        self._snapshots.clear()

    def select(self, resource: Resource, chosen: Filter) -> list[Stored]:
        if chosen.namespace and chosen.fields.name:
            found = self._store.get(storage_key(resource), chosen.namespace, chosen.fields.name)
            return [found] if found and chosen(found) else []
        return [one for one in self._store.all(storage_key(resource), chosen.namespace) if chosen(one)]

    def list(self, resource: Resource, namespace: str, query: dict[str, str]) -> Page:
        """Return one page. Raises: 410 for an expired continue token, 504 for a future resourceVersion."""
        limit = int(query.get("limit") or 0)
        token = query.get("continue", "")
        if token:
            return self._next(token, limit)
        wanted = int(query.get("resourceVersion") or 0)
        if wanted > self._store.version:
            message = f"Too large resource version: {wanted}, current: {self._store.version}"
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            raise errors.ApiError(504, "Timeout", message, {"causes": causes}, retry_after_s=1)
        items = self.select(resource, Filter.of(resource, namespace, query))
        return self._cut(Page(items, self._store.version), limit)

    def _cut(self, page: Page, limit: int) -> Page:
        if not limit or len(page.items) <= limit:
            return page
        rest = page.items[limit:]
        key = secrets.token_hex(8)
        self._snapshots[key] = Page(rest, page.version)
        while len(self._snapshots) > _MOST_SNAPSHOTS:
            self._snapshots.popitem(last=False)
        token = base64.urlsafe_b64encode(
            json.dumps({"v": "meta.k8s.io/v1", "rv": page.version, "start": key}).encode()
        )
        return Page(page.items[:limit], page.version, token.decode().rstrip("="), len(rest))

    def _next(self, token: str, limit: int) -> Page:
        try:
            key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))["start"]
        except (binascii.Error, ValueError, KeyError):
            raise errors.bad_request("continue key is not valid") from None
        page = self._snapshots.get(key)
        if page is None:
            raise errors.expired(
                "The provided continue parameter is too old to display a consistent list result."
            )
        return self._cut(page, limit)

    async def watch(
        self, resource: Resource, namespace: str, query: dict[str, str], render: Render
    ) -> AsyncIterator[bytes]:
        """Yield the lines of a watch, in batches, until its timeout or an ERROR line."""
        watch = _Watch(self._store, resource, Filter.of(resource, namespace, query), render)
        life_s = float(query.get("timeoutSeconds") or 1800 + secrets.randbelow(1800))
        bookmarks = query.get("allowWatchBookmarks") in {"true", "1"}
        async for lines in watch.lines(
            query.get("resourceVersion", ""), life_s, self._bookmark_s if bookmarks else 0.0
        ):
            yield lines


class _Watch:
    """One watch: a position in a resource's log of changes."""

    def __init__(self, store: Store, resource: Resource, chosen: Filter, render: Render) -> None:
        self._store = store
        self._resource = resource
        self._chosen = chosen
        self._render = render
        self._log = store.log(storage_key(resource))
        self._sent = 0

    async def lines(self, version: str, life_s: float, bookmark_s: float) -> AsyncIterator[bytes]:
        waiter = asyncio.Event()
        self._log.waiters.add(waiter)
        try:
            first, position = self._start(version)
            if first:
                yield first
            end = time.monotonic() + life_s
            bookmark_at = time.monotonic() + bookmark_s if bookmark_s else end
            while (now := time.monotonic()) < end:
                waiter.clear()
                events = self._log.read(position)
                position += len(events)
                if lines := b"".join(self._encode(events)):
                    yield lines
                if now >= bookmark_at:
                    bookmark_at = now + bookmark_s
                    if self._changed():
                        yield self._bookmark(position)
                if not events:
                    await _wait(waiter, min(end, bookmark_at) - now)
            if bookmark_s and self._changed():
                yield self._bookmark(position)
        except errors.ApiError as error:
            yield _line("ERROR", json.dumps(error.body()).encode())
        finally:
            self._log.waiters.discard(waiter)

    def _changed(self) -> bool:
        """Whether the resource ever changed; like a real server, no bookmarks are sent otherwise."""
        return bool(self._log.base or self._log.events)

    def _start(self, version: str) -> tuple[bytes, int]:
        """Return the first lines, and the position to continue from."""
        if version in {"", "0"}:
            items = [one for one in self._store.all(storage_key(self._resource)) if self._chosen(one)]
            self._sent = self._store.version
            return b"".join(_line("ADDED", self._render(one)) for one in items), self._log.base + len(
                self._log.events
            )
        self._sent = int(version)
        return b"", self._log.position_after(int(version))

    def _encode(self, events: Iterable[Event]) -> Iterable[bytes]:
        for event in events:
            self._sent = event.version
            before = event.before is not None and self._chosen(event.before)
            after = event.type != "DELETED" and self._chosen(event.after)
            if after:
                yield _line("MODIFIED" if before else "ADDED", self._render(event.after))
            elif before:
                yield _line("DELETED", self._render(_at(event)))

    def _bookmark(self, position: int) -> bytes:
        """Return a bookmark; a client that resumes from it gets the changes from `position` on."""
        version = self._sent if self._log.read(position) else max(self._sent, self._store.version)
        meta = {"resourceVersion": str(version), "creationTimestamp": None}
        obj = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": meta}
        return _line("BOOKMARK", json.dumps(obj).encode())


def _at(event: Event) -> Stored:
    """Return the last state that matched the selector, with the resourceVersion of the change."""
    if event.type == "DELETED" or event.before is None:
        return event.after
    meta = event.before.obj["metadata"] | {"resourceVersion": str(event.version)}
    return Stored(event.before.obj | {"metadata": meta})


def _line(kind: str, obj: bytes) -> bytes:
    return b'{"type":"' + kind.encode() + b'","object":' + obj + b"}\n"


async def _wait(waiter: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(max(0.0, timeout_s)):
            await waiter.wait()
    except TimeoutError:
        return
