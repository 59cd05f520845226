"""Simulated nodes: the cluster sees ordinary nodes and the driver ordinary training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from objects import eventually, fresh, pod
from programs import api_server, simulated
from rest import Cluster, Refused, Rest
from simulated.control import Racks
from simulated.world import Attempt, Pace

Json = dict[str, Any]
PODS = "/api/v1/namespaces/default/pods"


def test_an_attempt_steps_by_the_clock_from_when_all_have_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    attempt = Attempt(1, 2, Pace(groups_s=1.0, load_s=1.0, step_s=2.0), steps=10, resumed_step=3)
    attempt.join("a")
    assert attempt.milestones(200.0) == (0.0, 0.0, 0.0)
    clock[0] = 110.0
    attempt.join("b")
    assert attempt.milestones(111.5) == (111.0, 0.0, 0.0)
    assert attempt.milestones(114.0) == (111.0, 112.0, 114.0)
    assert (attempt.step(111.0), attempt.step(116.0), attempt.step(999.0)) == (3, 5, 10)
    clock[0] = 117.0
    attempt.lose("b")
    assert attempt.step(999.0) == 5
    assert not attempt.done(999.0)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    with api_server(tmp_path / "api", "--node-grace-seconds", "2"):
        yield tmp_path / "api" / "kubeconfig"


@pytest.mark.multiprocess
def test_nodes_run_pods_without_processes_and_fail_by_the_rack(kubeconfig: Path, tmp_path: Path) -> None:
    api = Rest(Cluster.of(kubeconfig))
    arguments = ("--nodes", "6", "--rack", "2", "--lease-seconds", "0.5")
    program, url = simulated(tmp_path / "simulated", kubeconfig, *arguments)
    with program:
        tolerations = [{"key": "megascale.io/simulated", "operator": "Exists"}]
        selector = {"topology.kubernetes.io/rack": "1"}
        body = pod(fresh("slot"), nodeSelector=selector, tolerations=tolerations)
        body["metadata"]["labels"] = {"megascale.io/job": "none"}
        path = f"{PODS}/{api.create(PODS, body)['metadata']['name']}"
        running = eventually(
            lambda: found if (found := api.get(path))["status"]["phase"] == "Running" else None
        )
        assert running["status"]["podIP"].startswith("127.")
        racks = Racks(url)
        assert racks.counts() == {"slots": 1, "dead": 0}
        assert sorted(racks.fail(1)) == ["sim-2", "sim-3"]

        def tainted() -> set[str] | None:
            nodes = api.get("/api/v1/nodes")["items"]
            silent = {one["metadata"]["name"] for one in nodes if "unreachable" in str(one["spec"]["taints"])}
            return silent if len(silent) == 2 else None

        assert eventually(tainted) == {"sim-2", "sim-3"}
        alive = pod(fresh("slot"), nodeSelector={"topology.kubernetes.io/rack": "0"}, tolerations=tolerations)
        other = f"{PODS}/{api.create(PODS, alive)['metadata']['name']}"
        eventually(lambda: api.get(other)["status"]["phase"] == "Running" or None)
        api.delete(other)
        eventually(lambda: gone(api, other))


def gone(api: Rest, path: str) -> bool | None:
    try:
        api.get(path)
    except Refused:
        return True
    return None
