"""The nodes, their pods, and an agent for every slot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubelet.client import STRATEGIC, Client
from kubelet.containers import now
from kubelet.tokens import bound_token
from rest import Refused

from megascale.agent.place import Place
from megascale.observe.rundir import RunDir
from megascale.rpc.connect import Trust
from simulated.agent import SimulatedAgent
from simulated.world import Pace, World

Json = dict[str, Any]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
TAINT = {"key": "megascale.io/simulated", "value": "true", "effect": "NoSchedule"}
_AT_ONCE = 32


@dataclass(frozen=True)
class Fleet:
    """How many nodes, in racks of how many, and how often they renew their Lease (seconds)."""

    nodes: int = 1600
    rack: int = 32
    prefix: str = "sim-"
    lease_s: float = 20.0


@dataclass
class _Job:
    """What the agents of one job share."""

    folder: Path
    world: World
    heartbeat_s: float
    ranks_per_node: int
    server_name: str


@dataclass
class _Slot:
    pod: Json
    task: asyncio.Task[None]
    restarts: int = field(default=0)


class SimulatedNodes:
    """Registers nodes, renews Leases, marks pods Running, and plays their agents."""

    def __init__(self, client: Client, folder: Path, fleet: Fleet, pace: Pace) -> None:
        self._client, self._folder, self._fleet, self._pace = client, folder, fleet, pace
        self._names = {f"{fleet.prefix}{n}": n for n in range(fleet.nodes)}
        self._dead: set[str] = set()
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._slots: dict[str, _Slot] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> None:
        await self._all(self._register(name, number) for name, number in self._names.items())
        self._tasks = [
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._client.follow("/api/v1/configmaps", self._config_map_changed)),
            asyncio.create_task(self._client.follow("/api/v1/pods", self._pod_changed)),
        ]

    async def stop(self) -> None:
        tasks = [*self._tasks, *(slot.task for slot in self._slots.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def fail(self, rack: int) -> list[str]:
        """Every node of a rack goes silent at once; their names."""
        lost = [name for name, number in self._names.items() if number // self._fleet.rack == rack]
        self._dead.update(lost)
        for uid, slot in list(self._slots.items()):
            if slot.pod["spec"]["nodeName"] in self._dead:
                slot.task.cancel()
                del self._slots[uid]
        for job in self._jobs.values():
            for name in lost:
                job.world.lose(name)
        return lost

    def counts(self) -> Json:
        return {"slots": len(self._slots), "dead": len(self._dead)}

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
        beat = {
            "lastHeartbeatTime": now(),
            "lastTransitionTime": now(),
            "reason": "KubeletReady",
            "message": "ready",
        }
        status = {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [{"type": "Ready", "status": "True"} | beat],
        }
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

    async def _beat(self) -> None:
        """Renew one Lease after the other, evenly over the period."""
        while True:
            for name in self._names:
                if name not in self._dead:
                    await self._renew(name)
                await asyncio.sleep(self._fleet.lease_s / len(self._names))

    async def _config_map_changed(self, kind: str, config_map: Json) -> None:
        """Agents read the driver's address and the job from files, as in a pod."""
        name = config_map.get("metadata", {}).get("name", "")
        labels = config_map.get("metadata", {}).get("labels", {})
        if kind in {"SYNCED", "DELETED"} or "megascale.io/job" not in labels:
            return
        job, namespace = labels["megascale.io/job"], config_map["metadata"]["namespace"]
        folder = self._folder / namespace / job
        folder.mkdir(parents=True, exist_ok=True)
        data = config_map.get("data") or {}
        if name == f"{job}-job" and "job.yaml" in data:
            (folder / "ca.crt").write_text(data.get("ca.crt", ""))
            self._learn(namespace, job, folder, yaml.safe_load(data["job.yaml"])["spec"])
        elif name == f"{job}-driver" and "driver.json" in data:
            fresh = folder / "driver.new"
            fresh.write_text(data["driver.json"])
            fresh.replace(folder / "driver.json")

    def _learn(self, namespace: str, job: str, folder: Path, spec: Json) -> None:
        heartbeat_s = float(spec.get("health", {}).get("heartbeatSeconds", 2))
        known = self._jobs.get((namespace, job))
        world = known.world if known else World(self._pace, int(spec["steps"]))
        name = f"{job}.{namespace}.driver.megascale"
        self._jobs[namespace, job] = _Job(folder, world, heartbeat_s, int(spec.get("ranksPerNode", 1)), name)

    async def _pod_changed(self, kind: str, pod: Json) -> None:
        if (
            kind == "SYNCED"
            or pod["spec"].get("nodeName") not in self._names
            or pod["spec"]["nodeName"] in self._dead
        ):
            return
        uid = pod["metadata"]["uid"]
        slot = self._slots.get(uid)
        if kind == "DELETED":
            if slot:
                slot.task.cancel()
                del self._slots[uid]
        elif pod["metadata"].get("deletionTimestamp"):
            if slot:
                slot.task.cancel()
                del self._slots[uid]
                self._lost(pod)
            self._tasks.append(asyncio.create_task(self._finish(pod)))
        elif slot is None and pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"}:
            self._slots[uid] = _Slot(pod, asyncio.create_task(self._play(pod)))

    def _lost(self, pod: Json) -> None:
        job = self._jobs.get(
            (pod["metadata"]["namespace"], pod["metadata"]["labels"].get("megascale.io/job", ""))
        )
        if job:
            job.world.lose(pod["spec"]["nodeName"])

    async def _finish(self, pod: Json) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
        with contextlib.suppress(Refused):
            await self._client.insist("DELETE", path, body)

    async def _play(self, pod: Json) -> None:
        """Mark the pod Running, then be its agent until it is told to go."""
        meta = pod["metadata"]
        number = self._names[pod["spec"]["nodeName"]]
        ip = f"127.{128 + number // 250}.{number % 250 + 1}.2"
        async with self._gate:
            await self._report(pod, _status(pod, ip, {"running": {"startedAt": now()}}, 0))
        job = self._jobs.get((meta["namespace"], meta["labels"].get("megascale.io/job", "")))
        if job is None:
            return
        token = job.folder / f"token-{meta['uid']}"
        async with self._gate:
            token.touch(mode=0o600)
            token.write_text(await bound_token(self._client, pod, _audience(pod), 3600))
        trust = Trust(job.folder / "ca.crt", job.server_name)
        files = (job.folder / "job.yaml", job.folder / "driver.json", token)
        node = pod["spec"]["nodeName"]
        place = Place(RunDir(job.folder), node, *files, host=ip, trust=trust, pod=meta["name"])
        restarts = 0
        while (
            code := await SimulatedAgent(place, job.world, job.ranks_per_node, job.heartbeat_s).run()
        ) == 75:
            restarts += 1
            await self._report(pod, _status(pod, ip, {"running": {"startedAt": now()}}, restarts))
        ended = {
            "terminated": {"exitCode": code, "reason": "Completed", "finishedAt": now(), "startedAt": now()}
        }
        await self._report(pod, _status(pod, ip, ended, restarts))

    async def _report(self, pod: Json, status: Json) -> None:
        meta = pod["metadata"]
        body = {"metadata": {"uid": meta["uid"]}, "status": status}
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        with contextlib.suppress(Refused):
            await self._client.insist("PATCH", path, body, STRATEGIC)


def _audience(pod: Json) -> str:
    """Of the token that the pod asks for."""
    for volume in pod["spec"].get("volumes", ()):
        for source in volume.get("projected", {}).get("sources", ()):
            if "audience" in source.get("serviceAccountToken", {}):
                return str(source["serviceAccountToken"]["audience"])
    return ""


def _status(pod: Json, ip: str, state: Json, restarts: int) -> Json:
    running = "running" in state
    container = pod["spec"]["containers"][0]
    shown = {"name": container["name"], "image": container["image"], "imageID": "none", "ready": running}
    shown |= {"started": running, "restartCount": restarts, "state": state, "lastState": {}}
    done = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}}
    checks = [
        {
            "name": one["name"],
            "image": one["image"],
            "imageID": "none",
            "ready": True,
            "restartCount": 0,
            "state": done,
        }
        for one in pod["spec"].get("initContainers", ())
    ]
    holds = "True" if running else "False"
    kinds = {"Initialized": "True", "ContainersReady": holds, "Ready": holds}
    conditions = [
        {"type": kind, "status": status, "lastTransitionTime": now()} for kind, status in kinds.items()
    ]
    found: Json = {
        "phase": "Running" if running else "Succeeded",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "startTime": now(),
    }
    found |= {"hostIP": ip, "containerStatuses": [shown], "conditions": conditions}
    return found | ({"initContainerStatuses": checks} if checks else {})
