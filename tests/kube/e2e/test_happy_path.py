"""A job is applied, trains, and ends."""

from __future__ import annotations

import pytest
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
