"""One node: registration, Lease, status, and the workers of its pods."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from rest import Refused

from kubelet.client import STRATEGIC, Client
from kubelet.containers import now
from kubelet.volumes import Source
from kubelet.worker import PodWorker

Json = dict[str, Any]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclass(frozen=True)
class Plan:
    """Properties of the nodes of this kubelet. Times in seconds."""

    labels: dict[str, str] = field(default_factory=dict)
    capacity: dict[str, str] = field(default_factory=lambda: {"cpu": "8", "memory": "32Gi", "pods": "110"})
    lease_s: float = 10.0
    backoff_s: float = 10.0


class Node:
    """A node, running or stopped by a test. `number` determines its addresses."""

    def __init__(
        self,
        name: str,
        number: int,
        client: Client,
        source: Source,
        folder: Path,
        memory: Path,
        plan: Plan,
        api: tuple[str, int],
    ) -> None:
        self.name = name
        self.client, self.source = client, source
        self.folder, self.memory_folder = folder, memory
        self.backoff_s, self.api = plan.backoff_s, api
        self._plan = plan
        self._number = number
        self.host_ip = self._address(1)
        self.pods: dict[str, Json] = {}
        self.workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._heartbeats: asyncio.Task[None] | None = None
        self._next = 2
        self.state = "down"

    def _address(self, last: int) -> str:
        """Return an address; kubelets of one machine have separate networks, so pods' ports do not clash."""
        network = 64 + (os.getpid() + self._number // 250) % 64
        return f"127.{network}.{self._number % 250 + 1}.{last}"

    async def start(self) -> None:
        """Register, send heartbeats, and run the pods bound to this node."""
        await self._register()
        self.state = "up"
        self._heartbeats = asyncio.create_task(self._heartbeat())
        for uid, pod in list(self.pods.items()):
            self._run(uid, pod)

    async def stop(self) -> None:
        """Simulate a power loss: kill all processes and report nothing."""
        self.state = "down"
        tasks = [*self._tasks.values(), *([self._heartbeats] if self._heartbeats else [])]
        for worker in self.workers.values():
            worker.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        self.workers.clear()

    def freeze(self) -> None:
        """Stop all processes and heartbeats, until `thaw`."""
        self.state = "frozen"
        if self._heartbeats:
            self._heartbeats.cancel()
        for worker in self.workers.values():
            for one in worker.running.values():
                one.freeze()

    def thaw(self) -> None:
        self.state = "up"
        for worker in self.workers.values():
            for one in worker.running.values():
                one.thaw()
        self._heartbeats = asyncio.create_task(self._heartbeat())

    def changed(self, kind: str, pod: Json) -> None:
        """Handle a change of a pod bound to this node."""
        uid = pod["metadata"]["uid"]
        if kind == "DELETED":
            self.pods.pop(uid, None)
            if uid in self.workers:
                self.workers[uid].removed()
            return
        known = uid in self.pods
        self.pods[uid] = pod
        if uid in self.workers:
            self.workers[uid].update(pod)
        elif self.state == "up" and (not known or pod["metadata"].get("deletionTimestamp")):
            self._run(uid, pod)

    def _run(self, uid: str, pod: Json) -> None:
        over = pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}
        if over and not pod["metadata"].get("deletionTimestamp"):
            return
        ip = self._address(self._next)
        self._next = self._next + 1 if self._next < 254 else 2
        worker = self.workers[uid] = PodWorker(self, pod, ip)
        task = self._tasks[uid] = asyncio.create_task(worker.run())
        task.add_done_callback(self._ended(uid))

    def _ended(self, uid: str) -> Callable[[asyncio.Task[None]], None]:
        def forget(task: asyncio.Task[None]) -> None:
            if self._tasks.get(uid) is task:
                del self._tasks[uid], self.workers[uid]
            if not task.cancelled() and (error := task.exception()):
                context = {"message": f"pod {uid} on {self.name}", "exception": error}
                task.get_loop().call_exception_handler(context)

        return forget

    async def config_map_changed(self, namespace: str, name: str) -> None:
        if self.state == "up":
            for worker in list(self.workers.values()):
                if worker.pod["metadata"]["namespace"] == namespace:
                    await worker.volumes.refresh(name)

    async def _register(self) -> None:
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        }
        labels |= {key: value.format(number=self._number) for key, value in self._plan.labels.items()}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": labels}}
        with contextlib.suppress(Refused):
            await self.client.insist("POST", "/api/v1/nodes", node | {"status": self._status()})
        await self._post_status()

    def _status(self) -> Json:
        heartbeat = {"lastHeartbeatTime": now(), "lastTransitionTime": now()}
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "kubelet is posting ready status",
        }
        pressures = [
            {
                "type": kind,
                "status": "False",
                "reason": f"KubeletHasNo{kind}",
                "message": "kubelet has enough",
            }
            | heartbeat
            for kind in ("MemoryPressure", "DiskPressure", "PIDPressure")
        ]
        info = dict.fromkeys(("machineID", "systemUUID", "bootID", "kernelVersion", "osImage"), "")
        info |= {
            "containerRuntimeVersion": "process://1",
            "kubeletVersion": "v1.33.0",
            "kubeProxyVersion": "",
        }
        info |= {"operatingSystem": "linux", "architecture": "amd64"}
        return {
            "capacity": self._plan.capacity,
            "allocatable": self._plan.capacity,
            "conditions": [*pressures, ready | heartbeat],
            "addresses": [
                {"type": "InternalIP", "address": self.host_ip},
                {"type": "Hostname", "address": self.name},
            ],
            "nodeInfo": info,
        }

    async def _post_status(self) -> None:
        with contextlib.suppress(Refused):
            await self.client.insist(
                "PATCH", f"/api/v1/nodes/{self.name}/status", {"status": self._status()}, STRATEGIC
            )

    async def node_changed(self, node: Json) -> None:
        """Post the status again if the node is running but was declared unreachable."""
        conditions = node.get("status", {}).get("conditions", ())
        ready = next((one["status"] for one in conditions if one["type"] == "Ready"), "")
        if self.state == "up" and ready != "True":
            await self._post_status()

    async def _heartbeat(self) -> None:
        """Renew the Lease; create it where it is missing."""
        while True:
            try:
                await self._renew()
            except (Refused, aiohttp.ClientError, TimeoutError):
                # The next heartbeat retries; a Lease may miss some while the API server is unreachable.
                await asyncio.sleep(self._plan.lease_s / 4)
                continue
            await asyncio.sleep(self._plan.lease_s)

    async def _renew(self) -> None:
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": time}
        try:
            await self.client.request(
                "PATCH", f"{LEASES}/{self.name}", {"spec": spec}, "application/merge-patch+json"
            )
        except Refused as refused:
            if refused.code != 404:
                raise
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self.name},
                "spec": spec,
            }
            await self.client.request("POST", LEASES, lease)
