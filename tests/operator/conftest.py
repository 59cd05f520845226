"""Fixtures: an API server double as a process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Program, api_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A fresh API server double; SIGUSR1 makes it compact its watch history."""
    folder = tmp_path_factory.mktemp("api")
    with api_server(folder, "--bookmark-seconds", "0.3") as program:
        yield program


@pytest.fixture(scope="module")
def kubeconfig(server: Program) -> Path:
    return server.log.parent / "kubeconfig"
