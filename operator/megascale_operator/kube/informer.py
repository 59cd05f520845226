"""Local cache of the objects of one kind, kept by LIST and WATCH; it stores projections, not objects."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, Protocol, TypeVar

from megascale.errors import MegascaleError
from megascale_operator.kube.api import KubeApi
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.errors import GoneError
from megascale_operator.kube.resources import Obj, Resource, name_of, namespace_of

log = logging.getLogger(__name__)

ObjectKey = tuple[str, str]
"""Namespace ("" for cluster-scoped objects) and name."""
PAGE: Final = 500
_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0


class Record(Protocol):
    """A projection of an object; `version` is the object's resourceVersion."""

    @property
    def version(self) -> str: ...


R = TypeVar("R", bound=Record)
Change = Callable[[R | None, R | None], None]
"""Handler of changes: (before, after). `before` is None for a new object, `after` for a deleted one."""


async def _pause(failures: int) -> None:
    delay_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0 ** min(failures, 10))
    await asyncio.sleep(random.uniform(0.5, 1.0) * delay_s)


class Informer(Generic[R]):
    """Caches the objects of one resource; lists and watches again after any error.

    Args:
        project: returns the record to cache for an object, or None to leave the object out.
        namespace: cache only this namespace; "" caches all.
        selector: label selector of the objects to cache.
        owner: returns the key under which `of` finds a record, None for no key.

    Attributes:
        synced: set after the first complete list; never cleared.
        last_response_at: monotonic time of the last response or watch event, in seconds.
    """

    def __init__(
        self,
        api: KubeApi,
        resource: Resource,
        project: Callable[[Obj], R | None],
        clock: Clock,
        *,
        namespace: str = "",
        selector: str = "",
        owner: Callable[[R], Hashable | None] = lambda _: None,
    ) -> None:
        self._api, self.resource, self._project, self._clock = api, resource, project, clock
        self._namespace, self._selector, self._owner = namespace, selector, owner
        self._records: dict[ObjectKey, R] = {}
        self._owned: defaultdict[Hashable, dict[ObjectKey, R]] = defaultdict(dict)
        self._handlers: list[Change[R]] = []
        self.synced = asyncio.Event()
        self.last_response_at = clock.monotonic()

    @property
    def records(self) -> Mapping[ObjectKey, R]:
        """A read-only view of all records; it changes with the cache."""
        return MappingProxyType(self._records)

    def get(self, name: str, namespace: str = "") -> R | None:
        return self._records.get((namespace, name))

    def of(self, owner: Hashable) -> list[R]:
        """Return the records of one owner."""
        return list(self._owned[owner].values()) if owner in self._owned else []

    def count(self, owner: Hashable) -> int:
        """Return the number of records of one owner."""
        return len(self._owned[owner]) if owner in self._owned else 0

    def on_change(self, handler: Change[R]) -> None:
        self._handlers.append(handler)

    def absorb(self, obj: Obj) -> None:
        """Cache the response to a write, so that the next reconcile sees it before the watch delivers it."""
        self._put(obj)

    async def run(self) -> None:
        """List and watch until cancelled; errors are retried with back-off."""
        failures = 0
        while True:
            try:
                version = await self._list()
                failures = 0
                await self._follow(version)
            except GoneError:
                log.info("%s: the resourceVersion is too old, listing again", self.resource.plural)
            except MegascaleError as error:
                failures += 1
                log.warning("%s: %s", self.resource.plural, error)
            await _pause(failures)

    async def _list(self) -> str:
        """Replace the cache with a full list; return the resourceVersion to watch from."""
        seen: set[ObjectKey] = set()
        after = ""
        while True:
            page = await self._api.list_page(
                self.resource, self._namespace, selector=self._selector, limit=PAGE, after=after
            )
            self._note_response()
            for obj in page.items:
                seen.add((namespace_of(obj), name_of(obj)))
                self._put(obj)
            after = page.next
            if not after:
                break
        self._drop(key for key in list(self._records) if key not in seen)
        self.synced.set()
        return page.resource_version

    async def _follow(self, version: str) -> None:
        """Watch from `version`, and resume after each end, until GoneError."""
        failures = 0
        while True:
            began = self._clock.monotonic()
            try:
                async with self._api.watch(
                    self.resource, self._namespace, selector=self._selector, since=version
                ) as events:
                    async for event in events:
                        self._note_response()
                        failures = 0
                        version = event.object["metadata"]["resourceVersion"]
                        if event.type == "DELETED":
                            self._drop([(namespace_of(event.object), name_of(event.object))])
                        elif event.type != "BOOKMARK":
                            self._put(event.object)
                # Back off from a server that ends every watch immediately.
                failures = failures + 1 if self._clock.monotonic() - began < _FIRST_DELAY_S else 0
            except GoneError:
                raise
            except MegascaleError as error:
                failures += 1
                log.warning("%s: %s", self.resource.plural, error)
            if failures:
                await _pause(failures)

    def _note_response(self) -> None:
        self.last_response_at = self._clock.monotonic()

    def _put(self, obj: Obj) -> None:
        key = (namespace_of(obj), name_of(obj))
        before = self._records.get(key)
        version = str(obj["metadata"].get("resourceVersion", ""))
        if before is not None and _is_older(version, before.version):
            return
        after = self._project(obj)
        if after is None:
            self._drop([key])
            return
        self._records[key] = after
        if before is not None:
            self._unindex(key, before)
        owner = self._owner(after)
        if owner is not None:
            self._owned[owner][key] = after
        if before != after:
            self._notify(before, after)

    def _drop(self, keys: Iterable[ObjectKey]) -> None:
        for key in keys:
            before = self._records.pop(key, None)
            if before is not None:
                self._unindex(key, before)
                self._notify(before, None)

    def _unindex(self, key: ObjectKey, record: R) -> None:
        owner = self._owner(record)
        if owner is not None and owner in self._owned:
            self._owned[owner].pop(key, None)
            if not self._owned[owner]:
                del self._owned[owner]

    def _notify(self, before: R | None, after: R | None) -> None:
        for handler in self._handlers:
            handler(before, after)


def _is_older(version: str, than: str) -> bool:
    """Return whether `version` is older; resourceVersions of one resource are increasing numbers."""
    return version.isdigit() and than.isdigit() and int(version) < int(than)


def labels_of(obj: Obj) -> dict[str, str]:
    labels: dict[str, str] = obj["metadata"].get("labels") or {}
    return labels


def annotations_of(obj: Obj) -> dict[str, Any]:
    annotations: dict[str, Any] = obj["metadata"].get("annotations") or {}
    return annotations
