"""One job that keeps training through a sequence of disturbances."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import urllib3
from objects import eventually, fresh
from prometheus_client.parser import text_string_to_metric_families
from suite.jobs import Job, driver
from suite.manifests import training_job
from suite.site import OPERATORS, PODS, Site

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(600)]
Json = dict[str, Any]
NODES = 6


@dataclass
class Running:
    """The job and the files in its folder."""

    site: Site
    job: Job
    folder: Path

    def step(self) -> int:
        """Return the step that rank 0 has recorded in its own file."""
        kept = self.folder / self.job.name / "rank-0"
        return int(kept.read_text()) if kept.exists() else 0

    def trains(self, steps: int = 5, timeout_s: float = 0.0) -> int:
        """Wait for this many further steps; return the step then."""
        goal = self.step() + steps
        eventually(lambda: self.step() >= goal or None, timeout_s or self.job.patience_s)
        return self.step()

    def full(self) -> dict[str, Json]:
        """Wait until at least three slots are ready on different nodes and `slots.json` lists them.

        Returns node -> pod.
        """

        def look() -> dict[str, Json] | None:
            pods = [one for one in self.job.pods("slot") if "deletionTimestamp" not in one["metadata"]]
            ready = {one["spec"].get("nodeName", ""): one for one in pods if _ready(one)}
            return ready if len(ready) == len(pods) >= 3 and ready.keys() == self.told() else None

        try:
            return eventually(look, self.job.patience_s)
        except AssertionError as error:
            raise AssertionError(f"not three ready slots: {self.described()}") from error

    def full_without(self, node: str) -> None:
        """Wait until the slots are full and none is on `node`, whose loss may not be detected yet."""
        eventually(lambda: node not in self.full() or None, self.job.patience_s)

    def told(self) -> set[str]:
        """Return the nodes of the slots in `slots.json` that are not leaving."""
        path = f"/api/v1/namespaces/{self.job.namespace}/configmaps/{self.job.name}-slots"
        slots = json.loads(self.site.api.get(path)["data"]["slots.json"])["slots"]
        return {one["node"] for one in slots if one["ready"] and not one["leaving"]}

    def described(self) -> str:
        """Describe the job's objects, for a failure message."""
        pods = {
            one["metadata"]["name"]: [
                one["spec"].get("nodeName"),
                one["status"].get("phase"),
                one["metadata"].get("deletionTimestamp", ""),
                [entry for entry in one["status"].get("conditions", ()) if entry["status"] != "True"],
            ]
            for one in self.job.pods()
        }
        return json.dumps({"pods": pods, "driver": driver(self.job.get())})

    def recovered(self, restarts: int) -> Json:
        """Wait until the driver has recovered from that many restarts in total; return its status."""
        found = self.job.until(
            lambda one: (
                driver(one).get("restarts", 0) >= restarts and driver(one).get("jobState") == "running"
            ),
            f"recovered from {restarts} restarts",
        )
        return driver(found)

    @property
    def restarts(self) -> int:
        return int(driver(self.job.get()).get("restarts", 0))


def _ready(pod: Json) -> bool:
    return any(
        one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ())
    )


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    kubeconfig = request.config.getoption("--kubeconfig", default=None)
    with Site(tmp_path_factory.mktemp("site"), kubeconfig, nodes=NODES) as site:
        site.start_operator(OPERATORS[0])
        yield site


@pytest.fixture(scope="module")
def started(site: Site) -> Running:
    folder = site.folder / "state"
    namespace = site.namespace(fresh("e2e"))
    job = site.job(namespace, training_job("long", folder, steps=100_000, step_s=0.05))
    return Running(site, job, folder)


@pytest.fixture
def running(started: Running) -> Iterator[Running]:
    """The job, training on two nodes with a spare; disturbances are removed afterwards."""
    started.full()
    started.trains()
    yield started
    started.site.faults.clear()
    for client in (*OPERATORS, PODS):
        started.site.faults.open(client)
    for node, state in started.site.control.state().items():
        if state["state"] != "up":
            started.site.control.act(node, "thaw" if state["state"] == "frozen" else "start")


@pytest.mark.minutes
def test_an_unreachable_api_server_does_not_disturb_training(running: Running) -> None:
    """Connections are refused for 15 s, then requests hang for 60 s: no rank is restarted."""
    site = running.site
    ranks, restarts = site.ranks(running.job), running.restarts
    for client in (OPERATORS[0], PODS):
        site.faults.close(client)
    running.trains(100)
    time.sleep(10)
    for client in (OPERATORS[0], PODS):
        site.faults.open(client)
    silence = site.faults.add("hang")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        running.trains(20)
    site.faults.remove(silence)
    step = running.step()
    running.job.until(lambda one: driver(one).get("step", 0) >= step, "reported again")
    assert site.ranks(running.job) == ranks
    assert running.restarts == restarts
    assert site.operators[OPERATORS[0]].running


def test_faults_on_every_kind_of_request_only_delay(running: Running) -> None:
    """409, 429 with Retry-After, 500, lost responses and expired watches, for operator and driver."""
    site = running.site
    rules = [
        site.faults.add("answer", method="PUT|PATCH", code=409, times=6),
        site.faults.add("answer", code=429, retry_after=1, times=6),
        site.faults.add("answer", code=500, times=6),
        site.faults.add("lose", method="PUT|PATCH|POST", times=6),
        site.faults.add("expire", path="watch=true", times=6),
    ]
    for client in (OPERATORS[0], PODS):
        site.faults.cut(client)
    ranks = site.ranks(running.job)
    running.job.patch({"metadata": {"annotations": {"touched": fresh("by")}}})
    running.trains(100)
    for rule in rules:
        site.faults.remove(rule)
    step = running.step()
    running.job.until(lambda one: driver(one).get("step", 0) >= step, "reported again")
    assert site.ranks(running.job) == ranks


def test_the_driver_exports_metrics_of_its_job(running: Running) -> None:
    step = running.step()
    eventually(
        lambda: metrics(running.job.pods("driver")[0])["megascale_job_step"] >= step or None,
        running.job.patience_s,
    )


def metrics(pod: dict[str, Any]) -> dict[str, float]:
    """Return the pod's metrics on the port that the PodMonitor names."""
    (port,) = (
        one["containerPort"] for one in pod["spec"]["containers"][0]["ports"] if one["name"] == "metrics"
    )
    text = urllib3.request("GET", f"http://{pod['status']['podIP']}:{port}/metrics").data.decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {sample.name: sample.value for sample in samples if not sample.labels}


def test_a_killed_driver_comes_back_and_training_goes_on(running: Running) -> None:
    site, job = running.site, running.job
    ranks, term = site.ranks(job), int(driver(job.get())["term"])
    os.kill(_driver_pid(running), signal.SIGKILL)
    job.until(lambda one: int(driver(one).get("term", 0)) > term, "a new term")
    running.trains()
    assert site.ranks(job) == ranks


def _driver_pid(running: Running) -> int:
    for state in running.site.control.state().values():
        for pod, entry in state["pods"].items():
            if pod.startswith(f"{running.job.name}-driver-") and "driver" in entry["pids"]:
                return int(entry["pids"]["driver"])
    raise AssertionError("no driver runs")


def test_a_deleted_driver_pod_is_replaced_and_training_goes_on(running: Running) -> None:
    site, job = running.site, running.job
    ranks, term = site.ranks(job), int(driver(job.get())["term"])
    old = job.pods("driver")[0]["metadata"]["name"]
    site.api.delete(f"/api/v1/namespaces/{job.namespace}/pods/{old}")
    job.until(
        lambda one: driver(one).get("pod", old) != old and driver(one)["term"] > term, "another driver pod"
    )
    running.trains()
    assert site.ranks(job) == ranks


@pytest.mark.parametrize("with_driver", [True, False], ids=["with-driver", "without-driver"])
def test_an_evicted_pod_is_replaced_by_the_spare_without_blame(running: Running, with_driver: bool) -> None:
    """An eviction is planned: the job saves, uses the spare, and never excludes the node."""
    site, job = running.site, running.job
    if not with_driver:
        site.api.delete(f"/api/v1/namespaces/{job.namespace}/pods/{driver(job.get())['pod']}")
    node = sorted(site.ranks(job))[0]
    name = running.full()[node]["metadata"]["name"]
    path = f"/api/v1/namespaces/{job.namespace}/pods/{name}"
    site.api.create(f"{path}/eviction", {"metadata": {"name": name, "namespace": job.namespace}})
    eventually(lambda: (node not in site.ranks(job) and len(site.ranks(job)) == 2) or None, job.patience_s)
    running.trains()
    assert len(running.full()) >= 3
    assert driver(job.get())["requests"]["avoidNodes"] == []


def test_a_silent_node_is_replaced_by_the_spare(running: Running) -> None:
    site, job = running.site, running.job
    restarts, node = running.restarts, sorted(site.ranks(job))[0]
    step = running.step()
    site.control.act(node, "stop")
    eventually(lambda: (node not in site.ranks(job) and len(site.ranks(job)) == 2) or None, job.patience_s)
    assert running.trains() >= step
    said = running.recovered(restarts + 1)
    assert said["lastFaultNode"] == node
    # The slot is filled elsewhere, although the pod on the silent node cannot terminate.
    running.full_without(node)


def test_a_removed_node_is_replaced(running: Running) -> None:
    site, job = running.site, running.job
    node = sorted(site.ranks(job))[0]
    site.control.act(node, "remove")
    eventually(lambda: (node not in site.ranks(job) and len(site.ranks(job)) == 2) or None, job.patience_s)
    running.trains()
    running.full_without(node)
    gone = slots_file(running)["gone"]
    assert node in {one["node"] for one in gone}


def slots_file(running: Running) -> Json:
    path = f"/api/v1/namespaces/{running.job.namespace}/configmaps/{running.job.name}-slots"
    found: Json = json.loads(running.site.api.get(path)["data"]["slots.json"])
    return found


def test_an_operator_killed_in_the_middle_of_a_recovery(running: Running) -> None:
    site, job = running.site, running.job
    node = sorted(site.ranks(job))[0]
    site.control.act(node, "stop")
    site.operators[OPERATORS[0]].signal(signal.SIGKILL)
    # The driver recovers on the spare without the operator; the slot is filled once an operator runs.
    eventually(lambda: (node not in site.ranks(job) and len(site.ranks(job)) == 2) or None, job.patience_s)
    running.trains()
    site.stop_operator(OPERATORS[0])
    site.start_operator(OPERATORS[0])
    running.full_without(node)


# test_driver_on_cluster.py of tests/unit/kube_driver stops and continues a driver that has a successor; the
# tests above have the operator replace a driver's pod. Here a hung node causes both, which takes a minute.
@pytest.mark.proof
def test_two_drivers_alive_and_the_older_one_is_fenced(running: Running) -> None:
    """A driver's node hangs, another driver takes over, the node resumes: the old driver exits."""
    site, job = running.site, running.job
    term = int(driver(job.get())["term"])
    old = job.pods("driver")[0]
    node = old["spec"]["nodeName"]
    site.control.act(node, "freeze")
    job.until(lambda one: int(driver(one).get("term", 0)) > term, "a new term", 2 * job.patience_s)
    running.trains()
    site.control.act(node, "thaw")
    running.trains(40)
    newest = int(driver(job.get())["term"])
    assert newest > term
    eventually(lambda: _drivers(running) == 1 or None, job.patience_s)
    record = site.api.get(f"/api/v1/namespaces/{job.namespace}/configmaps/{job.name}-record")
    assert json.loads(record["data"]["record.json"])["term"] == newest


def _drivers(running: Running) -> int:
    states = running.site.control.state().values()
    return sum("driver" in entry["pids"] for state in states for entry in state["pods"].values())
