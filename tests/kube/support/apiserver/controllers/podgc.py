"""Pod garbage collection: deletes pods whose node no longer exists or is out of service."""

from __future__ import annotations

import time

from apiserver import pods
from apiserver.controllers.queue import Dirty
from apiserver.errors import Json
from apiserver.managed import now_text
from apiserver.store import Event, Store
from apiserver.typed import copy

_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_Key = tuple[str, str]


class PodCollector:
    """The pod garbage collector. `orphan_grace_s`: seconds from a node's deletion to that of its pods."""

    def __init__(self, store: Store, orphan_grace_s: float) -> None:
        self._store = store
        self._grace_s = orphan_grace_s
        self._gone: dict[str, float] = {}
        self._by_node: dict[str, dict[_Key, None]] = {}
        self._dirty: Dirty[str] = Dirty()
        store.listen(self._changed)

    def _changed(self, resource: str, event: Event) -> None:
        meta = event.after.obj["metadata"]
        if resource == "nodes":
            if event.type == "DELETED":
                self._gone[meta["name"]] = time.monotonic()
            else:
                self._gone.pop(meta["name"], None)
            self._dirty.mark(meta["name"])
        elif resource == "pods":
            self._pod_changed((meta["namespace"], meta["name"]), event)

    def _pod_changed(self, key: _Key, event: Event) -> None:
        meta, node = event.after.obj["metadata"], event.after.obj["spec"].get("nodeName")
        if event.type == "DELETED":
            self._by_node.get(node or "", {}).pop(key, None)
        elif node:
            self._by_node.setdefault(node, {})[key] = None
            if meta.get("deletionTimestamp"):
                self._dirty.mark(node)
        elif meta.get("deletionTimestamp"):
            self._store.remove("pods", *key)

    async def run(self) -> None:
        tick_s = min(5.0, max(0.05, self._grace_s / 8))
        while True:
            for name in await self._dirty.take(tick_s if self._gone else None):
                self._out_of_service(name)
            now = time.monotonic()
            for name, since in list(self._gone.items()):
                if now - since >= self._grace_s:
                    del self._gone[name]
                    for key in list(self._by_node.pop(name, ())):
                        self._delete(key, "node no longer exists")

    def _out_of_service(self, name: str) -> None:
        node = self._store.get("nodes", "", name)
        if node is None or not any(
            one["key"] == _OUT_OF_SERVICE for one in node.obj["spec"].get("taints", ())
        ):
            return
        for key in list(self._by_node.get(name, ())):
            pod = self._store.get("pods", *key)
            if pod and pod.obj["metadata"].get("deletionTimestamp"):
                self._delete(key, "node is out of service")

    def _delete(self, key: _Key, why: str) -> None:
        stored = self._store.get("pods", *key)
        if stored is None:
            return
        last: Json = copy(stored.obj)
        if not pods.is_over(last):
            last["status"]["phase"] = "Failed"
            pods.set_condition(
                last, "DisruptionTarget", "True", "DeletionByPodGC", f"PodGC: {why}", now_text()
            )
            self._store.put("pods", last)
        if not last["metadata"].get("finalizers"):
            self._store.remove("pods", *key)
