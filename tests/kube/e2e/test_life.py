"""Life cycle of jobs: completed, refused, suspended, resumed, deleted; and 200 at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from objects import eventually, refusal
from suite.jobs import Job, driver
from suite.manifests import training_job
from suite.site import Site

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_job_trains_to_its_end_and_leaves_nothing_running(site: Site, namespace: str) -> None:
    job = site.job(namespace, training_job("happy", site.folder / "state", steps=20, step_s=0.1))
    job.until_step(5)
    assert len(job.pods("slot")) == 3
    done = job.until_state("Completed")
    last = done["status"]["driver"]
    assert (last["step"], last["loss"]) == (20, "0.05000")
    assert job.condition("Complete") == "True"


def test_the_api_server_itself_refuses_an_invalid_manifest(site: Site, namespace: str) -> None:
    body = training_job("wrong", site.folder / "state")
    body["metadata"]["namespace"] = namespace
    body["spec"] |= {"minNodes": 3}
    path = f"/apis/megascale.io/v1alpha1/namespaces/{namespace}/trainingjobs"
    rule = refusal(lambda: site.api.create(path, body, fieldValidation="Strict"))
    assert (rule.code, rule.status["reason"]) == (422, "Invalid")
    assert "minNodes" in rule.status["message"]
    misspelt = training_job("wrong", site.folder / "state", node=2)
    unknown = refusal(lambda: site.api.create(path, misspelt, fieldValidation="Strict"))
    assert (unknown.code, 'unknown field "spec.node"' in unknown.status["message"]) == (400, True)
    assert site.api.get(path)["items"] == []


def kept_step(folder: Path, job: Job) -> int:
    kept = folder / job.name / "rank-0"
    return int(kept.read_text()) if kept.exists() else 0


def test_suspend_resume_and_delete_while_training(site: Site, namespace: str) -> None:
    """Suspending removes the pods and keeps the step; deleting saves and leaves no objects."""
    folder = site.folder / "state"
    job = site.job(namespace, training_job("pausing", folder, steps=100_000, step_s=0.05))
    eventually(lambda: kept_step(folder, job) >= 5 or None, job.patience_s)
    job.patch({"spec": {"suspend": True}})
    job.until_state("Suspended")
    eventually(lambda: not job.pods() or None, job.patience_s)
    step = kept_step(folder, job)
    job.patch({"spec": {"suspend": False, "spareNodes": 0}})
    eventually(lambda: kept_step(folder, job) > step + 5 or None, job.patience_s)
    assert len(job.pods("slot")) == 2
    resumed = job.until(lambda one: driver(one).get("jobState") == "running", "running again")
    assert driver(resumed)["restarts"] == 0
    job.delete()
    assert "megascale.io/save-before-delete" in job.get()["metadata"]["finalizers"]
    job.until(lambda one: not one, "deleted")
    assert job.pods() == []
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    ours = {"labelSelector": "app.kubernetes.io/managed-by=megascale-operator"}
    eventually(lambda: not site.api.get(maps, **ours)["items"] or None, job.patience_s)


# 40 jobs at once show that every one is served; that 200 are as well is a proof of scale.
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.proof)])
def test_many_jobs_at_once(site: Site, namespace: str, count: int) -> None:
    """Every job gets its pods; they are too large for any node, so that nothing runs."""
    begin = time.monotonic()
    for n in range(count):
        body = training_job(f"many-{n}", site.folder / "state")
        for container in body["spec"]["template"]["spec"]["containers"]:
            container["resources"] = {"requests": {"cpu": "1000"}}
        site.job(namespace, body)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    eventually(lambda: len(site.api.get(pods)["items"]) == 4 * count or None, 2 * site.patience.usual_s)
    took = time.monotonic() - begin
    jobs = site.api.get(f"/apis/megascale.io/v1alpha1/namespaces/{namespace}/trainingjobs")["items"]
    assert {len(one["status"]["conditions"]) for one in jobs} == {8}
    assert site.operators["operator-a"].running
    print(f"{count} jobs, {4 * count} pods in {took:.1f} s")
    force = {"metadata": {"annotations": {"megascale.io/force-delete": "true"}}}
    for n in range(count):
        job = Job(site.api, namespace, f"many-{n}", site.patience.usual_s)
        job.patch(force)
        job.delete()
    jobs_path = job.path.rsplit("/", 1)[0]
    eventually(lambda: not site.api.get(jobs_path)["items"] or None, job.patience_s)
    assert site.api.get(pods)["items"] == []
