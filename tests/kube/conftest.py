"""Fixtures of the Kubernetes tests: an API server double as a process, and clients for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import api_server
from rest import Cluster, Rest


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Administrator's kubeconfig of a fresh API server double."""
    folder = tmp_path_factory.mktemp("api")
    with api_server(
        folder, "--bookmark-seconds", "0.5", "--node-grace-seconds", "3", "--orphan-grace-seconds", "1"
    ):
        yield folder / "kubeconfig"


@pytest.fixture(scope="module")
def api(kubeconfig: Path) -> Rest:
    """The administrator's client."""
    return Rest(Cluster.of(kubeconfig))
