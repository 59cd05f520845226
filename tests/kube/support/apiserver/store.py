"""Objects in memory with one resourceVersion counter, and the bounded log that watches read.

Stored objects are never modified in place: a write stores a new one.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from apiserver.errors import Json, expired
from apiserver.fieldsets import Flat, flatten
from apiserver.managed import Managed
from apiserver.typed import Node

Key = tuple[str, str]
"""(namespace, name); the namespace is empty for cluster-scoped resources."""


class Event(NamedTuple):
    """One change. `before` is None for ADDED; for DELETED `after` has the version of the deletion."""

    version: int
    type: str
    before: Stored | None
    after: Stored


class Stored:
    """An object with its encodings, which are created on first use."""

    __slots__ = ("_flat", "_json", "_managed", "obj")

    def __init__(self, obj: Json) -> None:
        self.obj = obj
        self._json: bytes = b""
        self._flat: Flat | None = None
        self._managed: Managed | None = None

    @property
    def json(self) -> bytes:
        if not self._json:
            self._json = json.dumps(self.obj, separators=(",", ":")).encode()
        return self._json

    @property
    def managed(self) -> Managed:
        if self._managed is None:
            self._managed = Managed.read(self.obj)
        return self._managed

    def flat(self, node: Node) -> Flat:
        if self._flat is None:
            self._flat = flatten(self.obj, node)
        return self._flat


@dataclass
class Log:
    """Changes of one resource; `base` is the absolute index of `events[0]`."""

    events: list[Event] = field(default_factory=list)
    base: int = 0
    compacted: int = 0
    waiters: set[asyncio.Event] = field(default_factory=set)

    def position_after(self, version: int) -> int:
        """Return the absolute index of the first change after `version`. Raises: 410 if it was compacted."""
        if version < self.compacted:
            raise expired(f"too old resource version: {version} ({self.compacted})")
        return self.base + bisect_right(self.events, version, key=lambda event: event.version)

    def read(self, position: int) -> list[Event]:
        """Return the changes from an absolute index. Raises: 410 if the reader fell behind the window."""
        if position < self.base:
            raise expired(f"too old resource version: the watch fell behind ({self.compacted})")
        return self.events[position - self.base :]

    def trim(self, keep: int) -> None:
        surplus = len(self.events) - keep
        if surplus > 0:
            self.compacted = self.events[surplus - 1].version
            del self.events[:surplus]
            self.base += surplus


Listener = Callable[[str, Event], None]


class Store:
    """The server's objects. `window` limits the log of each resource, in changes."""

    def __init__(self, window: int = 20_000) -> None:
        self.version = 1000
        self._window = window
        self._objects: dict[str, dict[Key, Stored]] = {}
        self._logs: dict[str, Log] = {}
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener(resource, event)` after every change, in the writer's call."""
        self._listeners.append(listener)

    def log(self, resource: str) -> Log:
        return self._logs.setdefault(resource, Log(compacted=1000))

    def get(self, resource: str, namespace: str, name: str) -> Stored | None:
        return self._objects.get(resource, {}).get((namespace, name))

    def all(self, resource: str, namespace: str = "") -> Iterator[Stored]:
        """Yield every object of a resource, sorted by namespace and name."""
        objects = self._objects.get(resource, {})
        keys = [key for key in objects if key[0] == namespace] if namespace else list(objects)
        return (objects[key] for key in sorted(keys))

    def values(self, resource: str) -> list[Stored]:
        """Return every object of a resource, unordered."""
        return list(self._objects.get(resource, {}).values())

    def put(self, resource: str, obj: Json) -> Stored:
        """Create or replace an object; it gets the next resourceVersion."""
        meta = obj["metadata"]
        objects = self._objects.setdefault(resource, {})
        key = (meta.get("namespace", ""), meta["name"])
        before = objects.get(key)
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        stored = objects[key] = Stored(obj)
        self._record(resource, Event(self.version, "MODIFIED" if before else "ADDED", before, stored))
        return stored

    def remove(self, resource: str, namespace: str, name: str, last: Json | None = None) -> Stored | None:
        """Delete an object; `last` is the state for the DELETED event if it differs from the stored one."""
        before = self._objects.get(resource, {}).pop((namespace, name), None)
        if before is None:
            return None
        self.version += 1
        obj = last or before.obj
        meta = obj["metadata"] | {"resourceVersion": str(self.version)}
        after = Stored(obj | {"metadata": meta})
        self._record(resource, Event(self.version, "DELETED", before, after))
        return after

    def compact(self) -> None:
        """Drop the log: resumed watches get 410, open ones continue, as with a real watch cache."""
        for log in self._logs.values():
            log.compacted = self.version

    def _record(self, resource: str, event: Event) -> None:
        log = self.log(resource)
        log.events.append(event)
        if len(log.events) > 2 * self._window:
            log.trim(self._window)
        for waiter in log.waiters:
            waiter.set()
        for listener in self._listeners:
            listener(resource, event)
