"""The end-to-end suite runs against the double, or with `--kubeconfig FILE` against a real API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from objects import fresh
from suite.site import OPERATORS, Site


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kubeconfig", type=Path, default=None, help="real API server for tests/kube/e2e")
    parser.addoption(
        "--slots", type=int, default=24, help="size of the large job of tests/kube/e2e/test_scale.py"
    )


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A cluster with four nodes and one leading operator; tests must leave it unchanged.

    Checkpoints of jobs without checkpoint.uri are under `site.checkpoints`.
    """
    folder = tmp_path_factory.mktemp("site")
    with Site(folder, request.config.getoption("--kubeconfig", default=None)) as site:
        site.checkpoints.mkdir()
        site.start_operator(OPERATORS[0], "--checkpoint-root", str(site.checkpoints))
        yield site


@pytest.fixture
def namespace(site: Site) -> str:
    return site.namespace(fresh("e2e"))


@pytest.fixture
def slots(request: pytest.FixtureRequest) -> int:
    """Nodes of the large job: 24 are four racks, `make test-kube` takes 60, 1536 take minutes."""
    return int(request.config.getoption("--slots", default=24))
