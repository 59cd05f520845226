"""The slot pods of simulated nodes, with a simulated agent each."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubelet.client import STRATEGIC, Client
from kubelet.containers import now
from kubelet.tokens import bound_token
from rest import Refused

from megascale.agent.config import AgentConfig
from megascale.observe.rundir import RunDir
from megascale.rpc.connect import Trust
from simulated.agent import SimulatedAgent
from simulated.nodes import SELECTOR, Nodes
from simulated.podstatus import audience, status_of
from simulated.world import Pace, World

Json = dict[str, Any]
_AT_ONCE = 32
_RESTART = 75


@dataclass
class _Job:
    """State shared by the agents of one job."""

    folder: Path
    world: World
    heartbeat_s: float
    ranks_per_node: int
    server_name: str


@dataclass
class _Slot:
    pod: Json
    task: asyncio.Task[None]


class Slots:
    """Marks pods bound to these nodes Running, and runs their simulated agents."""

    def __init__(self, client: Client, folder: Path, nodes: Nodes, pace: Pace) -> None:
        self._client, self._folder, self._nodes, self._pace = client, folder, nodes, pace
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._slots: dict[str, _Slot] = {}
        self._learned = asyncio.Event()
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        self._keep(self._nodes.beat())
        self._keep(self._client.follow("/api/v1/nodes", self._nodes.changed, labelSelector=SELECTOR))
        self._keep(self._client.follow("/api/v1/configmaps", self._config_map_changed))
        self._keep(self._client.follow("/api/v1/pods", self._pod_changed))

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            task.get_loop().call_exception_handler({"message": "a simulated part failed", "exception": error})

    async def stop(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def fail(self, rack: int) -> list[str]:
        """Silence all nodes of a rack and their agents; return the nodes' names."""
        names = self._nodes.fail(rack)
        for uid, slot in list(self._slots.items()):
            if slot.pod["spec"]["nodeName"] in self._nodes.lost:
                self._end(uid)
        for job in self._jobs.values():
            for name in names:
                job.world.lose(name)
        return names

    def _end(self, uid: str) -> None:
        slot = self._slots.pop(uid, None)
        if slot:
            slot.task.cancel()
            job = self._job_of(slot.pod)
            if job:
                job.world.lose(slot.pod["spec"]["nodeName"])

    def _job_of(self, pod: Json) -> _Job | None:
        meta = pod["metadata"]
        return self._jobs.get((meta["namespace"], meta.get("labels", {}).get("megascale.io/job", "")))

    def counts(self) -> Json:
        return {"slots": len(self._slots), "dead": len(self._nodes.lost)}

    async def _config_map_changed(self, kind: str, config_map: Json) -> None:
        """Write the driver's address and the job to files, which agents read as in a pod."""
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
        learned, self._learned = self._learned, asyncio.Event()
        learned.set()

    async def _pod_changed(self, kind: str, pod: Json) -> None:
        if kind == "SYNCED" or not self._nodes.alive(pod["spec"].get("nodeName", "")):
            return
        uid = pod["metadata"]["uid"]
        if kind == "DELETED":
            self._end(uid)
        elif pod["metadata"].get("deletionTimestamp"):
            self._end(uid)
            self._keep(self._finish(pod))
        elif uid not in self._slots and pod.get("status", {}).get("phase") not in {"Succeeded", "Failed"}:
            self._slots[uid] = _Slot(pod, self._keep(self._play(pod)))

    async def _finish(self, pod: Json) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
        with contextlib.suppress(Refused):
            await self._client.insist("DELETE", path, body)

    async def _play(self, pod: Json) -> None:
        """Mark the pod Running, then run its agent until it is released."""
        meta = pod["metadata"]
        number = self._nodes.numbers[pod["spec"]["nodeName"]]
        ip = f"127.{128 + number // 250}.{number % 250 + 1}.2"
        async with self._gate:
            await self._report(pod, status_of(pod, ip, {"running": {"startedAt": now()}}, 0))
        if "megascale.io/job" not in meta.get("labels", {}):
            return
        while (job := self._job_of(pod)) is None:
            # Its ConfigMap arrives by another watch.
            await self._learned.wait()
        token = job.folder / f"token-{meta['uid']}"
        async with self._gate:
            token.touch(mode=0o600)
            token.write_text(await bound_token(self._client, pod, audience(pod), 3600))
        trust = Trust(job.folder / "ca.crt", job.server_name)
        files = (job.folder / "job.yaml", job.folder / "driver.json", token)
        node = pod["spec"]["nodeName"]
        config = AgentConfig(RunDir(job.folder), node, *files, host=ip, trust=trust, pod=meta["name"])
        restarts = 0
        while (
            code := await SimulatedAgent(config, job.world, job.ranks_per_node, job.heartbeat_s).run()
        ) == _RESTART:
            restarts += 1
            await self._report(pod, status_of(pod, ip, {"running": {"startedAt": now()}}, restarts))
        ended = {
            "terminated": {"exitCode": code, "reason": "Completed", "finishedAt": now(), "startedAt": now()}
        }
        await self._report(pod, status_of(pod, ip, ended, restarts))

    async def _report(self, pod: Json, status: Json) -> None:
        meta = pod["metadata"]
        body = {"metadata": {"uid": meta["uid"]}, "status": status}
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        with contextlib.suppress(Refused):
            await self._client.insist("PATCH", path, body, STRATEGIC)
