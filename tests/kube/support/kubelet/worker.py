"""One pod on one node: volumes, init containers, containers with restarts, deletion with its grace period."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any, Protocol

from rest import Refused

from kubelet import containers
from kubelet.client import STRATEGIC, Client, Pause
from kubelet.containers import Running, StartError, now
from kubelet.environment import command, environment
from kubelet.status import Conditions, ContainerState, conditions, may_restart, phase
from kubelet.volumes import Missing, Source, Volumes

Json = dict[str, Any]
_LONGEST_BACKOFF = 30
_REMOVED_GRACE_S = 2.0


class Host(Protocol):
    """The parts of a node that a worker uses."""

    client: Client
    source: Source
    folder: Path
    memory_folder: Path
    backoff_s: float
    api: tuple[str, int]
    host_ip: str


class PodWorker:
    """Runs a pod until it has ended or is deleted. `update` must be called with every new version of it."""

    def __init__(self, host: Host, pod: Json, ip: str) -> None:
        self._host = host
        self.pod = pod | {"status": pod.get("status", {}) | {"podIP": ip, "hostIP": host.host_ip}}
        meta = pod["metadata"]
        self._path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        self._folder = host.folder / "pods" / meta["uid"]
        self.volumes = Volumes(pod, self._folder / "volumes", host.memory_folder / meta["uid"], host.source)
        self.ip = ip
        self.running: dict[str, Running] = {}
        self._init = [self._state(one) for one in pod["spec"].get("initContainers", ())]
        self._main = [self._state(one) for one in pod["spec"]["containers"]]
        self._conditions = Conditions()
        self._started_at = pod.get("status", {}).get("startTime") or now()
        self._changed = asyncio.Event()
        self._changed_running = asyncio.Event()
        self._leaving = asyncio.Event()
        self._gone = False
        self._last_sent: Json = {}
        self._adopt(pod)

    def _state(self, container: Json) -> ContainerState:
        return ContainerState(container["name"], container["image"])

    def _adopt(self, pod: Json) -> None:
        """Take over a pod after a restart of the node, which killed its containers."""
        known = {one["name"]: one for one in pod.get("status", {}).get("containerStatuses", ())}
        for state in self._main:
            old = known.get(state.name)
            if old and ("running" in old["state"] or old.get("lastState")):
                started = old["state"].get("running", {}).get("startedAt", now())
                state.restarts = old["restartCount"]
                state.end(137, started, "", old.get("containerID", ""))
                state.restart()

    def update(self, pod: Json) -> None:
        """Handle a new version of the pod; spec and identity are unchanged."""
        self.pod = pod | {"status": pod.get("status", {}) | {"podIP": self.ip, "hostIP": self._host.host_ip}}
        self.volumes.pod = self.pod
        if pod["metadata"].get("deletionTimestamp"):
            self._leaving.set()

    def removed(self) -> None:
        """Handle the removal of the pod from the API server: no status is reported any more."""
        self._gone = True
        self._leaving.set()

    async def run(self) -> None:
        """Run the pod; at the end kill its containers and remove its folder."""
        if self.pod["metadata"].get("deletionTimestamp"):
            self._leaving.set()
        reporting = asyncio.create_task(self._report())
        living = asyncio.create_task(self._live())
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait([living, leaving], return_when=asyncio.FIRST_COMPLETED)
            if living.done() and not self._leaving.is_set():
                living.result()
                await self._leaving.wait()
            await self._leave(living)
            if not self._gone:
                await self._finish(reporting)
        finally:
            for task in (reporting, living, leaving):
                task.cancel()
            await asyncio.gather(reporting, living, leaving, return_exceptions=True)
            self.kill()
            if self._leaving.is_set():
                self.volumes.remove()

    def kill(self) -> None:
        for one in self.running.values():
            one.signal(signal.SIGKILL)

    async def _leave(self, living: asyncio.Task[None]) -> None:
        """Terminate the pod: SIGTERM, the grace period, SIGKILL."""
        grace_s = float(self.pod["metadata"].get("deletionGracePeriodSeconds") or _REMOVED_GRACE_S)
        for one in self.running.values():
            one.signal(signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + grace_s
        while self.running and (left := deadline - asyncio.get_running_loop().time()) > 0:
            self._changed_running.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed_running.wait()
        self.kill()
        await asyncio.wait([living])

    async def _finish(self, reporting: asyncio.Task[None]) -> None:
        reporting.cancel()
        uid = self.pod["metadata"]["uid"]
        with contextlib.suppress(Refused):
            await self._send()
            await self._host.client.insist(
                "DELETE", self._path, {"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}
            )

    async def _live(self) -> None:
        self._changed.set()
        if not await self._prepared():
            return
        policy = self.pod["spec"]["restartPolicy"]
        for container, state in zip(self.pod["spec"].get("initContainers", ()), self._init, strict=True):
            await self._keep(container, state, "OnFailure" if policy == "Always" else policy)
            if state.exit_code != 0:
                self._changed.set()
                return
        pairs = zip(self.pod["spec"]["containers"], self._main, strict=True)
        refreshing = asyncio.create_task(self._refresh())
        try:
            await asyncio.gather(*(self._keep(container, state, policy) for container, state in pairs))
        finally:
            refreshing.cancel()

    async def _prepared(self) -> bool:
        """Wait until all volumes are created."""
        pause = Pause(0.05, 1.0)
        while not self._leaving.is_set():
            try:
                await self.volumes.prepare()
            except Missing as missing:
                for state in self._main:
                    state.wait("ContainerCreating", str(missing))
                self._changed.set()
                await pause.wait()
            else:
                return True
        return False

    async def _refresh(self) -> None:
        """Renew tokens before they expire."""
        while (due := self.volumes.next_refresh()) < float("inf"):
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            await self.volumes.refresh()

    async def _keep(self, container: Json, state: ContainerState, policy: str) -> None:
        """Run a container and restart it by its policy; the first restart is immediate."""
        failures = 0
        while not self._leaving.is_set():
            code = await self._once(container, state)
            self._changed.set()
            if self._leaving.is_set() or not may_restart(policy, code):
                return
            state.restart()
            if failures:
                wait_s = min(
                    self._host.backoff_s * 2 ** (failures - 1), self._host.backoff_s * _LONGEST_BACKOFF
                )
                state.wait(
                    "CrashLoopBackOff", f"back-off {wait_s:g}s restarting failed container={state.name}"
                )
                self._changed.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._leaving.wait()
            failures += 1

    async def _once(self, container: Json, state: ContainerState) -> int:
        """Run a container once; return its exit code."""
        folder = self._folder / "containers" / f"{state.name}-{state.restarts}"
        meta = self.pod["metadata"]
        log = (
            self._host.folder
            / "logs"
            / f"{meta['namespace']}_{meta['name']}_{state.name}_{state.restarts}.log"
        )
        identity = f"process://{meta['uid']}/{state.name}/{state.restarts}"
        started_at = now()
        try:
            variables = await environment(self.pod, container, self._host.source, self._host.api)
            mounted = containers.mounts(self.pod, container, self.volumes)
            argv = command(container, variables)
            running = await containers.start(folder, container, argv, variables, mounted, log)
        except (Missing, StartError, OSError) as error:
            state.end(128, started_at, str(error), identity)
            return 128
        self.running[state.name] = running
        state.run(running.started_at)
        state.ready = True
        if self._leaving.is_set():
            running.signal(signal.SIGTERM)
        self._changed.set()
        code = await running.wait()
        del self.running[state.name]
        self._changed_running.set()
        message = containers.termination_message(folder, container, code, log)
        state.end(code, running.started_at, message, identity)
        return code

    async def _report(self) -> None:
        """Send the status whenever it changes."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._send()
            except Refused as refused:
                if refused.code in {404, 409}:
                    self.removed()
                    return
                raise

    def _status(self) -> Json:
        policy = self.pod["spec"]["restartPolicy"]
        now_in = phase("Never" if self._leaving.is_set() else policy, self._init, self._main)
        uid = self.pod["metadata"]["uid"]
        states = {"initContainerStatuses": self._init, "containerStatuses": self._main}
        listed = {
            name: [one.to_json(f"process://{uid}/{one.name}/{one.restarts}") for one in group]
            for name, group in states.items()
            if group
        }
        found: Json = {"phase": now_in, "startTime": self._started_at, "hostIP": self._host.host_ip}
        found |= {"hostIPs": [{"ip": self._host.host_ip}], "podIP": self.ip, "podIPs": [{"ip": self.ip}]}
        return (
            found
            | listed
            | {"conditions": self._conditions.update(conditions(now_in, self._init, self._main))}
        )

    async def _send(self) -> None:
        status = self._status()
        if status == self._last_sent:
            return
        body = {"metadata": {"uid": self.pod["metadata"]["uid"]}, "status": status}
        await self._host.client.insist("PATCH", f"{self._path}/status", body, STRATEGIC)
        self._last_sent = status
