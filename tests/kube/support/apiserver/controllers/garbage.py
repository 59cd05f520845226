"""Deletes objects whose owners no longer exist; handles the `orphan` finalizer."""

from __future__ import annotations

from apiserver.bootstrap import SYSTEM
from apiserver.controllers.queue import Dirty
from apiserver.errors import Json
from apiserver.resources import Registry, storage_key
from apiserver.store import Event, Store
from apiserver.target import Options, Target
from apiserver.typed import copy
from apiserver.writes import Writer

_Place = tuple[str, str, str]
"""(store resource, namespace, name)."""


class GarbageCollector:
    """Background deletion, driven by an index owner uid -> dependents."""

    def __init__(self, store: Store, writer: Writer, registry: Registry) -> None:
        self._store = store
        self._writer = writer
        self._registry = registry
        self._alive: set[str] = set()
        self._dependents: dict[str, set[_Place]] = {}
        self._dirty: Dirty[_Place] = Dirty()
        for resource in {storage_key(one) for one in registry.all()}:
            for stored in store.values(resource):
                self._alive.add(stored.obj["metadata"]["uid"])
        store.listen(self._changed)

    def _changed(self, resource: str, event: Event) -> None:
        meta = event.after.obj["metadata"]
        place = (resource, meta.get("namespace", ""), meta["name"])
        owners = {one["uid"] for one in meta.get("ownerReferences", ())}
        before = event.before.obj["metadata"] if event.before else {}
        for uid in {one["uid"] for one in before.get("ownerReferences", ())} - owners:
            self._dependents.get(uid, set()).discard(place)
        if event.type == "DELETED":
            self._alive.discard(meta["uid"])
            for uid in owners:
                self._dependents.get(uid, set()).discard(place)
            for dependent in self._dependents.pop(meta["uid"], ()):
                self._dirty.mark(dependent)
            return
        self._alive.add(meta["uid"])
        for uid in owners:
            self._dependents.setdefault(uid, set()).add(place)
        if owners - self._alive or (meta.get("deletionTimestamp") and "orphan" in meta.get("finalizers", ())):
            self._dirty.mark(place)

    async def run(self) -> None:
        while True:
            for place in await self._dirty.take():
                self._collect(*place)

    def _collect(self, resource: str, namespace: str, name: str) -> None:
        stored = self._store.get(resource, namespace, name)
        found = self._registry.by_key(resource)
        if stored is None or found is None:
            return
        meta = stored.obj["metadata"]
        if "orphan" in meta.get("finalizers", ()):
            self._release_dependents(meta["uid"])
            self._finish(Target(found, namespace, name), stored.obj)
            return
        owners = meta.get("ownerReferences", [])
        remaining = [one for one in owners if one["uid"] in self._alive]
        if owners and not remaining and not meta.get("deletionTimestamp"):
            self._writer.delete(
                Target(found, namespace, name), {}, Options(SYSTEM, "kube-controller-manager")
            )
        elif len(remaining) < len(owners) and remaining:
            self._set_owners(resource, stored.obj, remaining)

    def _release_dependents(self, uid: str) -> None:
        for resource, namespace, name in list(self._dependents.get(uid, ())):
            stored = self._store.get(resource, namespace, name)
            if stored:
                owners = stored.obj["metadata"].get("ownerReferences", [])
                self._set_owners(resource, stored.obj, [one for one in owners if one["uid"] != uid])

    def _set_owners(self, resource: str, obj: Json, owners: list[Json]) -> None:
        changed = copy(obj)
        changed["metadata"].pop("ownerReferences", None)
        if owners:
            changed["metadata"]["ownerReferences"] = owners
        self._store.put(resource, changed)

    def _finish(self, target: Target, obj: Json) -> None:
        changed = copy(obj)
        rest = [one for one in changed["metadata"].get("finalizers", ()) if one != "orphan"]
        changed["metadata"]["finalizers"] = rest
        self._writer.update(target, changed, Options(SYSTEM, "kube-controller-manager"))
