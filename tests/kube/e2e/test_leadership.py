"""Two operators and one Lease: under all faults of the leader, at most one of them writes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from objects import eventually, fresh
from suite.jobs import Job
from suite.manifests import training_job
from suite.site import OPERATORS, Site
from suite.trail import overlaps, writes

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(600)]
TAKEOVER_S, ROLLOUT_S = 15.0, 5.0


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    kubeconfig = request.config.getoption("--kubeconfig", default=None)
    with Site(tmp_path_factory.mktemp("site"), kubeconfig) as site:
        site.start_operator(OPERATORS[0])
        yield site


@pytest.fixture(autouse=True)
def _never_two_writers(site: Site) -> Iterator[None]:
    """Both replicas run before each test; after it, the log of all requests is checked for two writers."""
    for name in OPERATORS:
        if name not in site.operators or not site.operators[name].running:
            site.start_operator(name)
    eventually(lambda: site.leader() or None, 30.0)
    yield
    site.faults.clear()
    assert overlaps(site.faults.trail(), OPERATORS) == []


def roles(site: Site) -> tuple[str, str]:
    """Return the names of the leader and of the other replica."""
    leader = site.leader()
    return leader, next(name for name in OPERATORS if name != leader)


def other_leads(site: Site, name: str, timeout_s: float) -> float:
    """Wait until `name` leads; return the seconds it took."""
    begin = time.monotonic()
    eventually(lambda: site.leader() == name or None, timeout_s)
    return time.monotonic() - begin


def reacts(site: Site, namespace: str) -> Job:
    """Create a job and wait until a leader has created all its pods."""
    job = site.job(namespace, training_job(fresh("job"), site.folder / "state", steps=1000))
    eventually(lambda: len(job.pods()) == 4 or None, 30.0)
    return job


def test_a_killed_leader_is_replaced_within_15_s(site: Site, namespace: str) -> None:
    leader, other = roles(site)
    site.operators[leader].signal(signal.SIGKILL)
    site.stop_operator(leader)
    assert other_leads(site, other, 30.0) <= TAKEOVER_S
    reacts(site, namespace)


def test_a_rollout_hands_over_within_5_s(site: Site, namespace: str) -> None:
    leader, other = roles(site)
    site.operators[leader].signal(signal.SIGTERM)
    assert other_leads(site, other, 30.0) <= ROLLOUT_S
    site.stop_operator(leader)
    reacts(site, namespace)


def test_a_paused_leader_writes_nothing_when_it_resumes(site: Site, namespace: str) -> None:
    leader, other = roles(site)
    job = reacts(site, namespace)
    site.operators[leader].signal(signal.SIGSTOP)
    job.patch({"spec": {"steps": 2000}})
    assert other_leads(site, other, 30.0) <= TAKEOVER_S
    reacts(site, namespace)
    before = len(writes(site.faults.trail(), leader))
    site.operators[leader].signal(signal.SIGCONT)
    reacts(site, namespace)
    assert len(writes(site.faults.trail(), leader)) == before
    assert site.leader() == other


def test_a_leader_cut_off_from_the_api_server_steps_down(site: Site, namespace: str) -> None:
    leader, other = roles(site)
    silence = site.faults.add("hang", client=leader)
    other_leads(site, other, 30.0)
    site.faults.remove(silence)
    reacts(site, namespace)
    assert site.operators[leader].running


def test_an_unchanged_cluster_gets_no_writes(site: Site, namespace: str) -> None:
    """A job that does not change causes no writes, however often it is reconciled."""
    job = site.job(namespace, training_job(fresh("rest"), site.folder / "state", suspend=True))
    job.until(lambda one: one.get("status", {}).get("observedGeneration") == 1, "observed")
    quiet(site, namespace)
    begin = len(site.faults.trail())
    for round_ in range(5):
        job.patch({"metadata": {"annotations": {"touched": str(round_)}}})
    # Give unwanted writes time to happen.
    time.sleep(3.0)
    assert writes_about(site.faults.trail()[begin:], namespace) == []


def quiet(site: Site, namespace: str) -> None:
    """Wait until there was no write in the namespace for two seconds."""

    def look() -> bool | None:
        lines = writes_about(site.faults.trail(), namespace)
        return (not lines or time.time() - lines[-1]["time"] > 2.0) or None

    eventually(look, 30.0)


def writes_about(trail: list[dict[str, Any]], namespace: str) -> list[dict[str, Any]]:
    return [line for line in writes(trail, *OPERATORS) if namespace in line["path"]]
