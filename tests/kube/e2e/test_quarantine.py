"""Quarantine within the breaker's limits, and release by a person or a NodeCheck."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from objects import eventually, fresh
from suite.jobs import Job, driver
from suite.manifests import training_job
from suite.site import OPERATORS, Site

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(600)]
Json = dict[str, Any]
MARK, TAINT = "megascale.io/quarantine", "megascale.io/quarantined"


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    kubeconfig = request.config.getoption("--kubeconfig", default=None)
    with Site(tmp_path_factory.mktemp("site"), kubeconfig, nodes=6, mode="Enforce") as site:
        site.start_operator(OPERATORS[0])
        yield site


def node(site: Site, name: str) -> Json:
    return site.api.get(f"/api/v1/nodes/{name}")


def own_taints(site: Site, name: str) -> list[Json]:
    return [one for one in node(site, name)["spec"].get("taints", ()) if one["key"] == TAINT]


def test_quarantine_breaker_and_release_by_a_check(site: Site) -> None:
    namespace = site.namespace(fresh("e2e"))
    body = training_job("strict", site.folder / "state", steps=100_000, step_s=0.05)
    body["spec"] |= {"remediation": {"mode": "Enforce"}}
    job = site.job(namespace, body)
    eventually(lambda: len(site.ranks(job)) == 2 or None, job.patience_s)
    # A taint of another owner must stay on the node throughout.
    bad = sorted(site.ranks(job))[0]
    theirs = {"key": "example.com/theirs", "effect": "PreferNoSchedule"}
    site.api.json_patch(f"/api/v1/nodes/{bad}", [{"op": "add", "path": "/spec/taints", "value": [theirs]}])
    site.control.act(bad, "stop")
    eventually(lambda: own_taints(site, bad) or None, 2 * job.patience_s)
    marked = node(site, bad)
    assert marked["spec"]["unschedulable"] is True
    assert set(json.loads(marked["metadata"]["annotations"][MARK])["set"]) == {"cordon", "taint"}
    assert theirs["key"] in {one["key"] for one in marked["spec"]["taints"]}
    job.until(lambda one: bad in str(one["status"]["operator"]["quarantined"]), "granted")
    eventually(lambda: "Quarantined" in event_reasons(site, bad) or None, job.patience_s)
    eventually(lambda: len(site.ranks(job)) == 2 or None, job.patience_s)

    # A second quarantine is refused: at most 10% of the nodes, but always one.
    worse = sorted(site.ranks(job))[0]
    site.control.act(worse, "stop")
    refused = job.until(
        lambda one: any(
            entry["node"] == worse and "breaker open" in entry["reason"]
            for entry in one["status"]["operator"]["refusals"]
        ),
        "refused",
        2 * job.patience_s,
    )
    assert own_taints(site, worse) == []
    assert worse in driver(refused)["requests"]["avoidNodes"]

    # The first node is repaired and passes its check: only what the operator set is removed.
    site.control.act(bad, "start")
    eventually(lambda: (is_free(job, bad) and len(held(site) - {bad, worse}) == 3) or None, job.patience_s)
    eventually(lambda: ready(site, bad) or None, job.patience_s)
    theirs_too = next(name for name in nodes(site) if name not in {bad, worse} | held(site))
    site.api.merge(f"/api/v1/nodes/{theirs_too}", {"spec": {"unschedulable": True}})
    done = checked(site, [bad, theirs_too, min(held(site) - {bad, worse})])
    assert {group["result"] for group in done["groups"]} == {"passed", "skipped"}
    assert (done["passed"], done["skipped"]) == (2, 1)
    back = node(site, bad)
    assert not back["spec"].get("unschedulable")
    assert own_taints(site, bad) == []
    assert MARK not in back["metadata"]["annotations"]
    assert theirs["key"] in {one["key"] for one in back["spec"]["taints"]}
    assert node(site, theirs_too)["spec"]["unschedulable"] is True


def held(site: Site) -> set[str]:
    """Wait for three slots of a job (two train, one is a spare); return their nodes."""
    state = site.control.state()
    return {name for name, one in state.items() for pod in one["pods"].values() if "slot" in pod["pids"]}


def event_reasons(site: Site, name: str) -> set[str]:
    """Return the reasons of the Events on a node."""
    events = site.api.get("/api/v1/namespaces/default/events")["items"]
    return {one["reason"] for one in events if one["involvedObject"]["name"] == name}


def is_free(job: Job, name: str) -> bool:
    """Return whether the job has no pods left on a node that came back."""
    return all(one["spec"].get("nodeName") != name for one in job.pods())


def nodes(site: Site) -> list[str]:
    return sorted(one["metadata"]["name"] for one in site.api.get("/api/v1/nodes")["items"])


def ready(site: Site, name: str) -> bool:
    conditions = node(site, name)["status"]["conditions"]
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def checked(site: Site, names: list[str]) -> Json:
    """Create a NodeCheck of the nodes, one at a time; return its status when it is complete."""
    check = fresh("check")
    kind = {"apiVersion": "megascale.io/v1alpha1", "kind": "NodeCheck", "metadata": {"name": check}}
    site.apply({**kind, "spec": {"nodes": names, "maxConcurrent": 1}})
    path = f"/apis/megascale.io/v1alpha1/nodechecks/{check}"

    def look() -> Json | None:
        status: Json = site.api.get(path).get("status") or {}
        return status if status.get("completionTime") else None

    return eventually(look, 2 * site.patience.usual_s)
