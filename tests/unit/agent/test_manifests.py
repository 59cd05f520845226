from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from megascale.agent.manifests import Manifests
from megascale.errors import InputError, ManifestError, UnreachableError
from megascale.job import TrainingJob, canonical_json, from_mapping, resolved_yaml, revision_of


def job_of(steps: int) -> TrainingJob:
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    return from_mapping(head | {"spec": {"steps": steps, "runtime": {"command": {"args": ["true"]}}}})


class Driver:
    """Gives manifests by their revision, and counts how often it is asked."""

    def __init__(self, *jobs: TrainingJob) -> None:
        self.texts = {revision_of(job): canonical_json(job) for job in jobs}
        self.asked: list[str] = []

    async def fetch(self, revision: str) -> str:
        self.asked.append(revision)
        if revision not in self.texts:
            raise UnreachableError("the driver does not have that revision")
        return self.texts[revision]


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(resolved_yaml(job_of(1)))
    return path


def test_the_nodes_own_file_is_used_when_it_is_what_the_driver_names(job_file: Path) -> None:
    driver = Driver()
    manifests = Manifests(job_file, driver.fetch)
    assert asyncio.run(manifests.get(revision_of(job_of(1)))) == job_of(1)
    assert driver.asked == []


def test_another_revision_is_fetched_once(job_file: Path) -> None:
    driver = Driver(job_of(2))
    manifests = Manifests(job_file, driver.fetch)
    for _ in range(2):
        assert asyncio.run(manifests.get(revision_of(job_of(2)))) == job_of(2)
    assert driver.asked == [revision_of(job_of(2))]


def test_what_was_fetched_is_bounded(job_file: Path) -> None:
    jobs = [job_of(steps) for steps in range(2, 8)]
    driver = Driver(*jobs)
    manifests = Manifests(job_file, driver.fetch)
    for job in [*jobs, jobs[-4], jobs[0]]:
        asyncio.run(manifests.get(revision_of(job)))
    assert driver.asked == [revision_of(job) for job in [*jobs, jobs[0]]]


def test_a_revision_that_nobody_has_is_refused(job_file: Path) -> None:
    with pytest.raises(UnreachableError, match="does not have"):
        asyncio.run(Manifests(job_file, Driver().fetch).get(revision_of(job_of(2))))


def test_a_manifest_of_another_revision_is_refused(job_file: Path) -> None:
    driver = Driver()
    driver.texts[revision_of(job_of(2))] = canonical_json(job_of(3))
    with pytest.raises(InputError, match="is damaged"):
        asyncio.run(Manifests(job_file, driver.fetch).get(revision_of(job_of(2))))


def test_a_file_that_cannot_be_read_is_no_obstacle_to_a_revision_that_is_named(job_file: Path) -> None:
    job_file.write_text("{")
    assert asyncio.run(Manifests(job_file, Driver(job_of(2)).fetch).get(revision_of(job_of(2)))) == job_of(2)
    with pytest.raises(ManifestError):
        asyncio.run(Manifests(job_file, Driver().fetch).get(""))


def test_a_driver_that_names_no_revision_means_the_file(job_file: Path) -> None:
    assert asyncio.run(Manifests(job_file, Driver().fetch).get("")) == job_of(1)
