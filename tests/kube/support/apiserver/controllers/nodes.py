"""Node life cycle: silent nodes become unreachable, conditions become taints, NoExecute taints evict pods."""

from __future__ import annotations

import time

from apiserver import pods
from apiserver.bootstrap import SYSTEM
from apiserver.controllers.placement import tolerates
from apiserver.controllers.queue import Dirty
from apiserver.errors import Json
from apiserver.managed import now_text
from apiserver.resources import LEASES, Registry
from apiserver.store import Event, Store
from apiserver.target import Options, Target
from apiserver.typed import copy
from apiserver.writes import Writer

_NOT_READY, _UNREACHABLE = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
_UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_OWN = frozenset((_NOT_READY, _UNREACHABLE, _UNSCHEDULABLE))
_Key = tuple[str, str]


class Nodes:
    """The node-lifecycle and taint-eviction controllers. `grace_s`: silence before Ready is Unknown."""

    def __init__(self, store: Store, writer: Writer, registry: Registry, grace_s: float) -> None:
        self._store = store
        self._writer = writer
        self._registry = registry
        self._grace_s = grace_s
        self._seen: dict[str, float] = {}
        self._pods: dict[str, dict[_Key, None]] = {}
        self._evict_at: dict[_Key, float] = {}
        self._dirty: Dirty[str] = Dirty()
        store.listen(self._changed)

    def _changed(self, resource: str, event: Event) -> None:
        meta = event.after.obj["metadata"]
        if resource == LEASES and meta["namespace"] == "kube-node-lease" and event.type != "DELETED":
            self._seen[meta["name"]] = time.monotonic()
        elif resource == "nodes":
            self._node_changed(meta["name"], event)
        elif resource == "pods":
            self._pod_changed((meta["namespace"], meta["name"]), event)

    def _node_changed(self, name: str, event: Event) -> None:
        if event.type == "DELETED":
            self._seen.pop(name, None)
            return
        before = event.before.obj if event.before else {}
        if _heartbeats(before) != _heartbeats(event.after.obj):
            self._seen[name] = time.monotonic()
        self._dirty.mark(name)

    def _pod_changed(self, key: _Key, event: Event) -> None:
        node = event.after.obj["spec"].get("nodeName")
        if event.type == "DELETED":
            self._evict_at.pop(key, None)
            self._pods.get(node or "", {}).pop(key, None)
        elif node and key not in self._pods.setdefault(node, {}):
            self._pods[node][key] = None
            self._dirty.mark(node)

    async def run(self) -> None:
        tick_s = min(5.0, max(0.05, self._grace_s / 8))
        next_tick = time.monotonic() + tick_s
        while True:
            for name in await self._dirty.take(max(0.0, next_tick - time.monotonic())):
                self._sync_taints(name)
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + tick_s
                self._tick(now)

    def _tick(self, now: float) -> None:
        for name, seen in list(self._seen.items()):
            if now - seen > self._grace_s:
                self._silent(name)
        for pod, at in list(self._evict_at.items()):
            if now >= at:
                self._evict(pod)

    def _silent(self, name: str) -> None:
        stored = self._store.get("nodes", "", name)
        if stored is None or _ready(stored.obj) == "Unknown":
            return
        node = copy(stored.obj)
        kinds = [one["type"] for one in node.get("status", {}).get("conditions", ())]
        for kind in kinds or ["Ready"]:
            why = "Kubelet stopped posting node status."
            pods.set_condition(node, kind, "Unknown", "NodeStatusUnknown", why, now_text())
        self._store.put("nodes", node)

    def _sync_taints(self, name: str) -> None:
        stored = self._store.get("nodes", "", name)
        if stored is None:
            return
        node = stored.obj
        taints = node["spec"].get("taints", [])
        wanted = _wanted(node)
        present = {(one["key"], one["effect"]) for one in taints if one["key"] in _OWN}
        if present != wanted:
            kept = [one for one in taints if one["key"] not in _OWN or (one["key"], one["effect"]) in wanted]
            for key, effect in sorted(wanted - present):
                kept.append({"key": key, "effect": effect, "timeAdded": now_text()})
            node = copy(node)
            node["spec"].pop("taints", None)
            if kept:
                node["spec"]["taints"] = kept
            self._store.put("nodes", node)
        for pod in list(self._pods.get(name, ())):
            self._pod_on(pod, node)

    def _pod_on(self, key: _Key, node: Json) -> None:
        stored = self._store.get("pods", *key)
        if stored is None:
            return
        if _ready(node) != "True":
            self._not_ready(stored.obj)
        taints = [one for one in node["spec"].get("taints", ()) if one["effect"] == "NoExecute"]
        wait_s = eviction_delay_s(stored.obj["spec"].get("tolerations", []), taints)
        if wait_s is None or stored.obj["metadata"].get("deletionTimestamp"):
            self._evict_at.pop(key, None)
        elif wait_s == 0:
            self._evict(key)
        else:
            self._evict_at.setdefault(key, time.monotonic() + wait_s)

    def _not_ready(self, pod: Json) -> None:
        conditions = pod.get("status", {}).get("conditions", ())
        if any(one["type"] == "Ready" and one["status"] == "True" for one in conditions):
            changed = copy(pod)
            pods.set_condition(changed, "Ready", "False", "NodeNotReady", "", now_text())
            self._store.put("pods", changed)

    def _evict(self, key: _Key) -> None:
        self._evict_at.pop(key, None)
        stored, resource = self._store.get("pods", *key), self._registry.find("", "v1", "pods")
        if stored is None or resource is None or stored.obj["metadata"].get("deletionTimestamp"):
            return
        marked = copy(stored.obj)
        why = "Taint manager: deleting due to NoExecute taint"
        pods.set_condition(marked, "DisruptionTarget", "True", "DeletionByTaintManager", why, now_text())
        self._store.put("pods", marked)
        self._writer.delete(Target(resource, *key), {}, Options(SYSTEM, "kube-controller-manager"))


def _heartbeats(node: Json) -> list[str]:
    """Return the timestamps that a node status update changes even if nothing else changed."""
    conditions = node.get("status", {}).get("conditions", ())
    return [one.get("lastHeartbeatTime", "") for one in conditions if one["status"] != "Unknown"]


def _ready(node: Json) -> str:
    conditions = node.get("status", {}).get("conditions", ())
    return next((str(one["status"]) for one in conditions if one["type"] == "Ready"), "False")


def _wanted(node: Json) -> set[tuple[str, str]]:
    """Return the taints that follow from a node's condition and cordon."""
    wanted = {(_UNSCHEDULABLE, "NoSchedule")} if node["spec"].get("unschedulable") else set()
    if _ready(node) == "Unknown":
        return wanted | {(_UNREACHABLE, "NoSchedule"), (_UNREACHABLE, "NoExecute")}
    if _ready(node) != "True":
        return wanted | {(_NOT_READY, "NoSchedule"), (_NOT_READY, "NoExecute")}
    return wanted


def eviction_delay_s(tolerations: list[Json], taints: list[Json]) -> float | None:
    """Return the seconds until NoExecute taints evict a pod, None if it may stay."""
    if not taints:
        return None
    delays: list[float] = []
    for taint in taints:
        matching = [one for one in tolerations if tolerates([one], taint)]
        if not matching:
            return 0.0
        limited = [float(one["tolerationSeconds"]) for one in matching if "tolerationSeconds" in one]
        if limited:
            delays.append(max(0.0, min(limited)))
    return min(delays) if delays else None
