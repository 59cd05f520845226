"""What a replica does when it becomes the leader, and what it keeps from the time before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from apiserver.patches import json_patch
from kube_world import START, job_object, node_object
from megascale_operator.kube.clock import Clock, stamp
from megascale_operator.kube.errors import NotFoundError, NotLeaderError
from megascale_operator.kube.resources import (
    CONFIG_MAPS,
    EVENTS,
    NODE_CHECKS,
    NODES,
    PODS,
    TRAINING_JOBS,
    Obj,
    Resource,
)
from megascale_operator.main import Operator, Options
from megascale_operator.reconcile import names
from megascale_operator.reconcile.mark import mark_of
from megascale_operator.reconcile.observed import Settings
from virtual_time import VirtualLoop, run_virtual

SLOTS = names.slots_map("q")


class Replica:
    """An operator whose API server is a dictionary; every write is delivered to the informers."""

    def __init__(self, loop: VirtualLoop) -> None:
        clock = Clock(loop.time, lambda: START + loop.time())
        self.now = clock.utc
        self.objects: dict[tuple[str, str], Obj] = {}
        self.is_leader = True
        self.patched: list[str] = []
        self._version = 1
        options = Options(Settings("image:1", mode="Enforce"))
        self.operator = Operator(options, cast(Any, self), cast(Any, None), clock)
        self.operator.jobs.authority = cast(Any, None)

    async def lead(self, seconds: float, *, refused: bool = False) -> None:
        """Run the workers; with `refused` every write fails, because the Lease is lost."""
        self.is_leader = not refused
        working = asyncio.create_task(self.operator._run_workers())
        await asyncio.sleep(seconds)
        working.cancel()
        await asyncio.wait({working})

    def store(self, resource: Resource, obj: Obj) -> Obj:
        """Store an object, as another client or the API server does."""
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        self.objects[resource.plural, obj["metadata"]["name"]] = obj
        for informer in self.operator.informers.all:
            if informer.resource is resource:
                informer.absorb(json.loads(json.dumps(obj)))
        return obj

    def remove(self, resource: Resource, name: str) -> None:
        obj = self.objects.pop((resource.plural, name))
        informer = next(one for one in self.operator.informers.all if one.resource is resource)
        informer._drop([(obj["metadata"].get("namespace", ""), name)])

    def _check(self) -> None:
        if not self.is_leader:
            raise NotLeaderError("the write was not sent")

    async def get(self, resource: Resource, name: str, namespace: str = "") -> Obj:
        try:
            return self.objects[resource.plural, name]
        except KeyError:
            raise NotFoundError(f"{namespace}/{name}", 404) from None

    async def create(self, resource: Resource, body: Obj, *_: Any) -> Obj:
        self._check()
        meta = {"uid": body["metadata"]["name"], "creationTimestamp": stamp(self.now())}
        return self.store(resource, {**body, "metadata": {**body["metadata"], **meta}})

    async def apply(self, resource: Resource, body: Obj, *_: Any, subresource: str = "", **__: Any) -> Obj:
        self._check()
        before = self.objects.get((resource.plural, body["metadata"]["name"]), {})
        if subresource:
            driver = (before.get("status") or {}).get("driver") or {}
            return self.store(resource, {**before, "status": {**body["status"], "driver": driver}})
        return self.store(resource, {**before, **body})

    async def patch(self, resource: Resource, name: str, patch: Any, *_: Any, kind: str = "merge") -> Obj:
        self._check()
        before = self.objects[resource.plural, name]
        if kind == "json":
            self.patched.append(name)
            return self.store(resource, json_patch(before, patch))
        changed = {**before["metadata"], **patch.get("metadata", {})}
        return self.store(resource, {**before, "metadata": changed})

    async def delete(self, *_: Any, **__: Any) -> None:
        self._check()

    def request(self, *nodes: str, job: str = "q") -> None:
        """The driver of the job writes its requests."""
        found = self.objects[TRAINING_JOBS.plural, job]
        wanted = [{"node": node, "incident": "i-1", "cause": "hardware", "reason": "XID"} for node in nodes]
        driver = {"jobState": "running", "updatedAt": stamp(self.now()), "requests": {"quarantine": wanted}}
        self.store(TRAINING_JOBS, {**found, "status": {**found.get("status", {}), "driver": driver}})

    def cordoned(self, node: str) -> bool:
        return bool(self.objects[NODES.plural, node]["spec"].get("unschedulable"))

    def status(self) -> Obj:
        status: Obj = self.objects[TRAINING_JOBS.plural, "q"]["status"]["operator"]
        return status


def played(main: Callable[[Replica], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch) -> None:
    async def loaded(_: Operator) -> None:
        """The CA is not needed."""

    monkeypatch.setattr(Operator, "_load_authority", loaded)

    async def run(loop: VirtualLoop) -> None:
        replica = Replica(loop)
        replica.store(TRAINING_JOBS, job_object(remediation={"mode": "Enforce"}))
        for name in ("n1", "n2", "n3"):
            replica.store(NODES, node_object(name))
        await main(replica)

    run_virtual(run)


def test_a_request_outlives_a_loss_of_leadership(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(replica: Replica) -> None:
        await replica.lead(5)
        replica.request("n1")
        await replica.lead(5, refused=True)
        assert not replica.cordoned("n1")
        await replica.lead(5)
        assert replica.cordoned("n1")

    played(main, monkeypatch)


def test_a_node_that_another_leader_released_is_not_quarantined_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This replica has the request from before, and no result of it."""

    async def main(replica: Replica) -> None:
        replica.request("n1")
        await replica.lead(5, refused=True)
        status = replica.objects[TRAINING_JOBS.plural, "q"]
        granted = {"quarantined": [{"node": "n1", "incident": "i-1"}]}
        replica.store(TRAINING_JOBS, {**status, "status": {**status["status"], "operator": granted}})
        await replica.lead(5)
        assert not replica.cordoned("n1")

    played(main, monkeypatch)


def test_a_moment_without_the_lease_costs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fence may open again without a new election, when a renewal is late."""

    async def main(replica: Replica) -> None:
        replica.request("n1")
        replica.is_leader = False
        working = asyncio.create_task(replica.operator._run_workers())
        await asyncio.sleep(1)
        replica.is_leader = True
        await asyncio.sleep(10)
        working.cancel()
        assert replica.cordoned("n1")

    played(main, monkeypatch)


def test_a_release_leaves_a_newer_quarantine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(replica: Replica) -> None:
        replica.request("n1")
        await replica.lead(5)
        node = replica.operator.informers.nodes.get("n1")
        assert node is not None
        await replica.operator.quarantine.release("n1", "a check", None)
        assert replica.cordoned("n1")
        await replica.operator.quarantine.release("n1", "a check", mark_of(node))
        assert not replica.cordoned("n1")

    played(main, monkeypatch)


def gone(replica: Replica) -> list[tuple[str, str]]:
    document = json.loads(replica.objects[CONFIG_MAPS.plural, SLOTS]["data"]["slots.json"])
    return [(one["uid"], one["reason"].partition(":")[0]) for one in document["gone"]]


def test_a_standby_does_not_report_the_pods_that_ended_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another leader has reported them, and `slots.json` keeps only the last 64."""

    async def main(replica: Replica) -> None:
        await replica.lead(5)
        listed, other = (replica.objects[PODS.plural, f"q-{slot}-0"] for slot in (0, 1))
        failed = {"phase": "Failed"}
        for number in range(3):
            name = f"q-1-{number + 5}"
            meta = {**other["metadata"], "name": name, "uid": name}
            replica.store(PODS, {**other, "metadata": meta, "status": failed})
            replica.remove(PODS, name)
        replica.store(PODS, {**listed, "spec": {"nodeName": "n1"}, "status": failed})
        replica.remove(PODS, "q-0-0")
        await replica.lead(30)
        assert gone(replica) == [("q-0-0", "failed")]
        assert "q-0-1" in {name for _, name in replica.objects}
        assert (
            json.loads(replica.objects[CONFIG_MAPS.plural, SLOTS]["data"]["slots.json"])["incarnations"]["1"]
            == 7
        ), "numbers are not used twice"

    played(main, monkeypatch)


def test_events_name_every_node_that_did_not_pass_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that the status has no room for."""

    async def main(replica: Replica) -> None:
        nodes = [f"w{number}" for number in range(30)]
        for name in nodes:
            replica.store(NODES, node_object(name))
        kind = {"apiVersion": NODE_CHECKS.api_version, "kind": NODE_CHECKS.kind}
        meta = {"name": "all", "uid": "uid-check", "generation": 1}
        replica.store(NODE_CHECKS, {**kind, "metadata": meta, "spec": {"nodes": nodes, "maxConcurrent": 30}})
        await replica.lead(5)
        for (plural, _), pod in list(replica.objects.items()):
            if plural == PODS.plural and pod["metadata"]["labels"].get(names.CHECK):
                replica.store(PODS, {**pod, "status": {"phase": "Failed", "reason": "DeadlineExceeded"}})
        await replica.lead(5)
        status = replica.objects[NODE_CHECKS.plural, "all"]["status"]
        assert (status["unknown"], status["convicted"], len(status["groups"][0]["nodes"])) == (30, 0, 20)
        events = [one for (plural, _), one in replica.objects.items() if plural == EVENTS.plural]
        named = {one["message"].partition(":")[0] for one in events if one["reason"] == "Unknown"}
        assert named == set(nodes)

    played(main, monkeypatch)
