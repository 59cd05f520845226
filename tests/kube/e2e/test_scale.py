"""A large job on simulated nodes: creation, training, a lost rack, recovery (`--slots 1536`: full size)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import psutil
import pytest
from objects import eventually, fresh
from programs import simulated
from simulated.control import Racks
from suite.jobs import Job, driver
from suite.manifests import training_job
from suite.site import OPERATORS, Site

from megascale.core.contract.names import unpack

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(600)]
RACK = 6
_PATIENCE_S, _PATIENCE_PER_SLOT_S = 240.0, 0.3


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    kubeconfig = request.config.getoption("--kubeconfig", default=None)
    with Site(tmp_path_factory.mktemp("site"), kubeconfig, nodes=1, node_grace_s=60.0) as site:
        site.start_operator(OPERATORS[0])
        yield site


@pytest.mark.timeout(3600)
def test_many_slots_and_a_rack_that_is_lost(site: Site, slots: int) -> None:
    namespace = site.namespace(fresh("e2e"))
    nodes, spares = slots, RACK + 4
    patience_s = _PATIENCE_S + _PATIENCE_PER_SLOT_S * slots
    arguments = ("--nodes", str(nodes + spares + 2 * RACK), "--rack", str(RACK))
    program, url = simulated(site.folder / "simulated", site.kubeconfig, *arguments)
    with program:
        racks, folder = Racks(url), site.folder / "state"
        body = training_job("large", folder, steps=1_000_000)
        spec = body["spec"] | {"nodes": nodes, "minNodes": nodes - RACK, "spareNodes": spares}
        spec["health"] |= {"heartbeatSeconds": 5, "silenceSeconds": 20}
        spec["scheduling"] = {"topologyKeys": ["topology.kubernetes.io/rack"]}
        spec["template"]["spec"] |= {
            "nodeSelector": {"megascale.io/simulated": "true"},
            "tolerations": [{"key": "megascale.io/simulated", "operator": "Exists"}],
        }
        before, begin = cpu_s(site), time.time()
        job = site.job(namespace, body | {"spec": spec})
        eventually(lambda: pods(site, namespace) > nodes + spares or None, patience_s)
        spent_s = cpu_s(site) - before
        created = made(site, job, nodes + spares, patience_s)
        bound_s = cpu_s(site) - before
        span_s = created[-1]["time"] - created[0]["began"]
        print(f"{len(created)} pods created in {span_s:.1f} s; operator {spent_s:.1f} s CPU", flush=True)
        print(f"all of them on nodes {time.time() - begin:.1f} s after apply; operator {bound_s:.1f} s CPU")
        eventually(lambda: racks.counts()["slots"] >= nodes + spares or None, patience_s)
        print(f"apply to all joined: {time.time() - begin:.1f} s", flush=True)
        job.until_step(2, patience_s)
        print(f"apply to step 2 in the status: {time.time() - begin:.1f} s")
        attempt = driver(job.get())["attempt"]
        # The driver knows the racks: the nodes of one rack get consecutive ranks.
        racks_in_order = [int(name.rpartition("-")[2]) // RACK for name in assigned(site, job)]
        runs = sum(1 for one, other in pairwise(racks_in_order) if one != other) + 1
        assert runs == len(set(racks_in_order))

        lost = racks.fail(0)
        at = time.time()
        found = job.until(
            lambda one: driver(one).get("attempt", 0) > attempt and driver(one).get("jobState") == "running",
            "recovered",
            patience_s,
        )
        print(f"{len(lost)} nodes lost; running again after {time.time() - at:.1f} s")
        # The nodes of a rack are lost together: none of them is blamed.
        assert driver(found)["requests"]["avoidNodes"] == []
        step = driver(found)["step"]
        job.until_step(step + 2, patience_s)
        assert len(assigned(site, job)) == nodes
        assert set(lost).isdisjoint(assigned(site, job))


def assigned(site: Site, job: Job) -> list[str]:
    """Return the nodes with ranks from the driver's job record."""
    path = f"/api/v1/namespaces/{job.namespace}/configmaps/{job.name}-record"
    record = json.loads(site.api.get(path)["data"]["record.json"])
    return unpack(record["core"]["assignment"])


def made(site: Site, job: Job, count: int, timeout_s: float) -> list[dict[str, Any]]:
    """Wait until `count` slots are on nodes; return the operator's requests that created the pods."""
    job.until(lambda one: bound(one) >= count, f"{count} slots on nodes", timeout_s)
    lines = [line for line in site.faults.trail() if line["client"] == OPERATORS[0]]
    # Code 0: the response came after the operator's timeout, which is no failure.
    created = [line for line in lines if _makes_a_pod(line) and line["code"] in (0, 201)]
    assert len(created) > count
    return created


def pods(site: Site, namespace: str) -> int:
    """Return the number of pods without reading them."""
    page = site.api.get(f"/api/v1/namespaces/{namespace}/pods", limit="1")
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


def bound(job: dict[str, Any]) -> int:
    slots = job.get("status", {}).get("operator", {}).get("slots", {})
    return int(slots.get("bound", 0))


def _makes_a_pod(line: dict[str, Any]) -> bool:
    return line["method"] == "POST" and line["path"].partition("?")[0].endswith("/pods")


def cpu_s(site: Site) -> float:
    process = site.operators[OPERATORS[0]].process
    assert process is not None
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system
