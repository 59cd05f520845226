"""Simulated nodes: Node objects with heartbeats but without machines."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from kubelet.client import STRATEGIC, Client
from kubelet.containers import now
from rest import Refused

Json = dict[str, Any]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
SELECTOR = "megascale.io/simulated=true"
TAINT = {"key": "megascale.io/simulated", "value": "true", "effect": "NoSchedule"}
_NOT_USABLE = {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
_AT_ONCE = 32


@dataclass(frozen=True)
class Fleet:
    """Number of nodes, nodes per rack, and Lease renewal period in seconds."""

    nodes: int = 1600
    rack: int = 32
    prefix: str = "sim-"
    lease_s: float = 20.0


class Nodes:
    """Registers nodes and renews the Leases of those that are not lost."""

    def __init__(self, client: Client, fleet: Fleet) -> None:
        self._client, self._fleet = client, fleet
        self.numbers = {f"{fleet.prefix}{n}": n for n in range(fleet.nodes)}
        self.lost: set[str] = set()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._renewals: set[asyncio.Task[None]] = set()
        self._kept = set(self.numbers)
        self._usable = asyncio.Event()

    def alive(self, name: str) -> bool:
        """Return whether `name` is one of these nodes and is not lost."""
        return name in self.numbers and name not in self.lost

    def fail(self, rack: int) -> list[str]:
        """Silence all nodes of a rack; return their names."""
        names = [name for name, number in self.numbers.items() if number // self._fleet.rack == rack]
        self.lost.update(names)
        return names

    async def register(self) -> None:
        await self._all(self._register(name, number) for name, number in self.numbers.items())

    async def _all(self, work: Iterator[Any]) -> None:
        async def bounded(one: Any) -> None:
            async with self._gate:
                await one

        await asyncio.gather(*(bounded(one) for one in work))

    async def _register(self, name: str, number: int) -> None:
        rack = str(number // self._fleet.rack)
        labels = {
            "kubernetes.io/hostname": name,
            "megascale.io/simulated": "true",
            "topology.kubernetes.io/rack": rack,
        }
        capacity = {"cpu": "96", "memory": "1Ti", "pods": "110", "nvidia.com/gpu": "8"}
        status = {"capacity": capacity, "allocatable": capacity, "conditions": [_ready()]}
        node = {"metadata": {"name": name, "labels": labels}, "spec": {"taints": [TAINT]}, "status": status}
        with contextlib.suppress(Refused):
            await self._client.insist("POST", "/api/v1/nodes", node)
        await self._renew(name)

    async def _renew(self, name: str) -> None:
        spec = {"holderIdentity": name, "leaseDurationSeconds": 40}
        spec |= {"renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            try:
                await self._client.request(
                    "PATCH", f"{LEASES}/{name}", {"spec": spec}, "application/merge-patch+json"
                )
            except Refused as refused:
                if refused.code == 404:
                    await self._client.request("POST", LEASES, {"metadata": {"name": name}, "spec": spec})

    async def beat(self) -> None:
        """Renew every Lease once per period, spread evenly, independent of response times."""
        clock = asyncio.get_running_loop().time
        due_s = clock()
        for name in itertools.cycle(self.numbers):
            if name not in self.lost:
                await self._gate.acquire()
                task = asyncio.create_task(self._live(name))
                self._renewals.add(task)
                task.add_done_callback(self._renewals.discard)
            due_s = max(due_s + self._fleet.lease_s / len(self.numbers), clock() - self._fleet.lease_s)
            await asyncio.sleep(max(0.0, due_s - clock()))

    async def _live(self, name: str) -> None:
        try:
            await self._renew(name)
        finally:
            self._gate.release()

    async def changed(self, change: str, node: Json) -> None:
        """Handle a change of a node; one that was declared unreachable but is not lost posts Ready again."""
        name = node.get("metadata", {}).get("name", "")
        if change == "DELETED" or not self.alive(name):
            return
        if _NOT_USABLE.isdisjoint(taint["key"] for taint in node["spec"].get("taints") or ()):
            self._kept.discard(name)
        else:
            self._kept.add(name)
        if not self._kept:
            self._usable.set()
        if not any(
            one["type"] == "Ready" and one["status"] == "True" for one in node["status"]["conditions"]
        ):
            body = {"status": {"conditions": [_ready()]}}
            await self._client.insist("PATCH", f"/api/v1/nodes/{name}/status", body, STRATEGIC)

    async def usable(self) -> None:
        """Wait until pods can be scheduled on all of these nodes."""
        await self._usable.wait()


def _ready() -> Json:
    beat = {"lastHeartbeatTime": now(), "lastTransitionTime": now()}
    return {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"} | beat
