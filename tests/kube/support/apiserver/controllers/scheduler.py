"""A small scheduler: binds pods that fit a node, and sets the condition PodScheduled on the others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

from apiserver import pods
from apiserver.controllers.placement import NodeInfo, refusal
from apiserver.controllers.queue import Dirty
from apiserver.errors import Json
from apiserver.managed import now_text
from apiserver.store import Event, Store
from apiserver.typed import copy

_Key = tuple[str, str]
_BATCH = 50
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 5.0


@dataclass
class _Wait:
    """An unscheduled pod. `seen`: the cluster state it was last tried with; `due`: monotonic time."""

    seen: int = -1
    due: float = 0.0
    backoff_s: float = _FIRST_BACKOFF_S

    def is_due(self, changes: int) -> bool:
        return self.seen != changes and self.due <= time.monotonic()

    def failed(self) -> None:
        self.due = time.monotonic() + self.backoff_s
        self.backoff_s = min(_LONGEST_BACKOFF_S, 2 * self.backoff_s)


class Scheduler:
    """Tracks the state of nodes from events, and retries unscheduled pods after changes.

    It takes the first node that fits, starting after the last one it used, instead of scoring all.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._infos: dict[str, NodeInfo] = {}
        self._order: list[str] = []
        self._at = 0
        self._waiting: dict[_Key, _Wait] = {}
        self._gated: dict[_Key, bool] = {}
        self._bound: dict[_Key, str] = {}
        self._changes = 0
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
                self._infos[obj["metadata"]["name"]].node = {}
            else:
                self._node(obj)
        elif resource == "pods":
            if event.type == "DELETED" or pods.is_over(obj):
                self._forget((obj["metadata"]["namespace"], obj["metadata"]["name"]))
            else:
                self._pod(obj)

    def _node(self, node: Json) -> None:
        name = node["metadata"]["name"]
        info = self._info(name)
        old, info.node = info.node, node
        if not old or old.get("spec") != node.get("spec") or _differs(old, node):
            self._change()

    def _change(self) -> None:
        """Record a change after which an unscheduled pod may fit."""
        self._changes += 1
        self._dirty.mark("nodes")

    def _info(self, name: str) -> NodeInfo:
        if name not in self._infos:
            self._infos[name] = NodeInfo(name)
            self._order.append(name)
        return self._infos[name]

    def _pod(self, pod: Json) -> None:
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        node = pod["spec"].get("nodeName")
        if node:
            self._waiting.pop(key, None)
            self._bound[key] = node
            self._info(node).add(pod)
        elif not pod["metadata"].get("deletionTimestamp"):
            gated = bool(pod["spec"].get("schedulingGates"))
            if key not in self._waiting or self._gated.get(key, False) != gated:
                self._waiting[key] = _Wait()
                self._gated[key] = gated
                self._dirty.mark("pods")

    def _forget(self, key: _Key) -> None:
        self._waiting.pop(key, None)
        self._gated.pop(key, None)
        node = self._bound.pop(key, None)
        if node:
            self._infos[node].remove(key)
            self._change()

    async def run(self) -> None:
        """Try a pod when it is created, and again after changes, limited by its back-off."""
        while True:
            await self._dirty.take(self._next_due_s())
            tried = 0
            for key, wait in list(self._waiting.items()):
                if key not in self._waiting or not wait.is_due(self._changes):
                    continue
                wait.seen, tried = self._changes, tried + 1
                if not self._try(key):
                    wait.failed()
                    await asyncio.sleep(0)
                elif tried % _BATCH == 0:
                    await asyncio.sleep(0)

    def _next_due_s(self) -> float | None:
        """Return the seconds until the next pod's back-off ends, None if no pod has to be retried."""
        due = [wait.due for wait in self._waiting.values() if wait.seen != self._changes]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _try(self, key: _Key) -> bool:
        """Try to schedule a pod; return whether it needs no retry."""
        stored = self._store.get("pods", *key)
        if stored is None or stored.obj["spec"].get("schedulerName") != "default-scheduler":
            self._waiting.pop(key, None)
            return True
        pod = stored.obj
        if pod["spec"].get("schedulingGates"):
            self._set_unschedulable(
                pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates"
            )
            return True
        info, reasons = self._find(pod)
        if info:
            self._store.put("pods", pods.bind(pod, info.name, now_text()))
            return True
        total = sum(reasons.values())
        listed = ", ".join(f"{many} {why}" for why, many in sorted(reasons.items()))
        none = "no nodes available to schedule pods"
        self._set_unschedulable(
            pod, "Unschedulable", f"0/{total} nodes are available: {listed}." if total else none
        )
        return False

    def _find(self, pod: Json) -> tuple[NodeInfo | None, Counter[str]]:
        """Return the next node that fits, or the reasons why none does."""
        reasons: Counter[str] = Counter()
        count = len(self._order)
        for n in range(count):
            index = (self._at + n) % count
            info = self._infos[self._order[index]]
            why = refusal(pod, info) if info.node else "gone"
            if not why:
                self._at = (index + 1) % count
                return info, reasons
            if info.node:
                reasons[why] += 1
        return None, reasons

    def _set_unschedulable(self, pod: Json, reason: str, message: str) -> None:
        conditions = pod.get("status", {}).get("conditions", ())
        old: Json = next((one for one in conditions if one["type"] == "PodScheduled"), {})
        if (old.get("reason"), old.get("message")) != (reason, message):
            told = copy(pod)
            pods.set_condition(told, "PodScheduled", "False", reason, message, now_text())
            self._store.put("pods", told)


def _differs(old: Json, new: Json) -> bool:
    """Return whether fields that affect placement differ; heartbeats of conditions do not."""
    if old["metadata"].get("labels") != new["metadata"].get("labels"):
        return True
    return bool(old.get("status", {}).get("allocatable") != new.get("status", {}).get("allocatable"))
