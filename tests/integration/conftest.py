"""Fixtures that run jobs as a user would."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_jobs import Job, Zygote, job_spec
from local_runs import Jobs, Run

from megascale.data.indexed import IndexedWriter, bin_path, idx_path


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """A folder to run jobs in, shared by all tests; each gives its jobs names of their own."""
    found = Jobs(tmp_path_factory.mktemp("jobs"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def undisturbed(jobs: Jobs) -> Run:
    """The run that nothing happens to; what every other run is compared with."""
    run = jobs.run(jobs.manifest("undisturbed"))
    assert run.code == 0, run.stderr
    return run


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """The process that engine ranks are forked from; one for all tests."""
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text of a test file as byte tokens."""
    prefix = tmp_path_factory.mktemp("data") / "text"
    text = np.frombuffer(Path(__file__).with_name("test_engine_runs.py").read_bytes(), dtype=np.uint8).astype(
        np.uint16
    )
    with IndexedWriter(bin_path(prefix), idx_path(prefix), np.dtype("<u2")) as writer:
        # Each line is a document.
        for line in np.split(text, np.flatnonzero(text == ord("\n")) + 1):
            writer.append(line)
            writer.end_document()
    return prefix


@pytest.fixture
def new_job(zygote: Zygote, tmp_path: Path) -> Any:
    """Makes jobs of engine ranks, each in a folder of its own."""

    def make(name: str = "job") -> Job:
        folder = tmp_path / name
        folder.mkdir()
        return Job(zygote, folder)

    return make


@pytest.fixture
def spec(tokens: Path) -> Any:
    """Makes specs of tiny jobs over `tokens`."""
    return functools.partial(job_spec, tokens)
