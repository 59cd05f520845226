"""A small scheduler: binds pods that fit somewhere, tells the others why not."""

from __future__ import annotations

import asyncio
from collections import Counter

from apiserver import pods
from apiserver.apply import now_text
from apiserver.controllers.placement import Place, refusal
from apiserver.controllers.queue import Dirty
from apiserver.errors import Json
from apiserver.store import Event, Store
from apiserver.typed import copy

_Key = tuple[str, str]
_BATCH = 50


class Scheduler:
    """Keeps the state of nodes from events; looks at waiting pods when something changed.

    It takes the first node that fits, starting after the last one it used, instead of scoring all.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._places: dict[str, Place] = {}
        self._order: list[str] = []
        self._at = 0
        self._waiting: dict[_Key, None] = {}
        self._bound: dict[_Key, str] = {}
        self._dirty: Dirty[str] = Dirty()
        for stored in store.values("nodes"):
            self._node(stored.obj)
        for stored in store.values("pods"):
            self._pod(stored.obj)
        store.listen(self._changed)

    def _changed(self, resource: str, event: Event) -> None:
        obj = event.after.obj
        if resource == "nodes":
            if event.type == "DELETED":
                self._places[obj["metadata"]["name"]].node = {}
            else:
                self._node(obj)
        elif resource == "pods":
            if event.type == "DELETED" or pods.is_over(obj):
                self._forget((obj["metadata"]["namespace"], obj["metadata"]["name"]))
            else:
                self._pod(obj)

    def _node(self, node: Json) -> None:
        name = node["metadata"]["name"]
        place = self._place(name)
        old, place.node = place.node, node
        if not old or old.get("spec") != node.get("spec") or _differs(old, node):
            self._dirty.mark("nodes")

    def _place(self, name: str) -> Place:
        if name not in self._places:
            self._places[name] = Place(name)
            self._order.append(name)
        return self._places[name]

    def _pod(self, pod: Json) -> None:
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        node = pod["spec"].get("nodeName")
        if node:
            self._waiting.pop(key, None)
            self._bound[key] = node
            self._place(node).add(pod)
        elif not pod["metadata"].get("deletionTimestamp") and key not in self._waiting:
            self._waiting[key] = None
            self._dirty.mark("pods")
        elif key in self._waiting and not pod["spec"].get("schedulingGates"):
            self._dirty.mark("pods")

    def _forget(self, key: _Key) -> None:
        self._waiting.pop(key, None)
        node = self._bound.pop(key, None)
        if node:
            self._places[node].remove(key)
            self._dirty.mark("nodes")

    async def run(self) -> None:
        while True:
            await self._dirty.take()
            for n, key in enumerate(list(self._waiting)):
                if key in self._waiting:
                    self._try(key)
                if n % _BATCH == _BATCH - 1:
                    await asyncio.sleep(0)

    def _try(self, key: _Key) -> None:
        stored = self._store.get("pods", *key)
        if stored is None or stored.obj["spec"].get("schedulerName") != "default-scheduler":
            self._waiting.pop(key, None)
            return
        pod = stored.obj
        if pod["spec"].get("schedulingGates"):
            self._tell(pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates")
            return
        reasons: Counter[str] = Counter()
        count = len(self._order)
        for n in range(count):
            index = (self._at + n) % count
            place = self._places[self._order[index]]
            if not place.node:
                continue
            why = refusal(pod, place)
            if not why:
                self._at = (index + 1) % count
                self._store.put("pods", pods.bind(pod, place.name, now_text()))
                return
            reasons[why] += 1
        total = sum(reasons.values())
        listed = ", ".join(f"{many} {why}" for why, many in sorted(reasons.items()))
        self._tell(
            pod,
            "Unschedulable",
            f"0/{total} nodes are available: {listed}." if total else "no nodes available to schedule pods",
        )

    def _tell(self, pod: Json, reason: str, message: str) -> None:
        conditions = pod.get("status", {}).get("conditions", ())
        old: Json = next((one for one in conditions if one["type"] == "PodScheduled"), {})
        if (old.get("reason"), old.get("message")) != (reason, message):
            told = copy(pod)
            pods.set_condition(told, "PodScheduled", "False", reason, message, now_text())
            self._store.put("pods", told)


def _differs(old: Json, new: Json) -> bool:
    """Labels and allocatable decide placement; the heartbeat of conditions does not."""
    if old["metadata"].get("labels") != new["metadata"].get("labels"):
        return True
    return bool(old.get("status", {}).get("allocatable") != new.get("status", {}).get("allocatable"))
