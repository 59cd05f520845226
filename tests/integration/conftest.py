"""Fixtures that run jobs as a user would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_runs import Jobs, Run


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """A folder to run jobs in, shared by a module's tests."""
    found = Jobs(tmp_path_factory.mktemp("jobs"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def undisturbed(jobs: Jobs) -> Run:
    """The run that nothing happens to; what every other run is compared with."""
    run = jobs.run(jobs.manifest("undisturbed"))
    assert run.code == 0, run.stderr
    return run
