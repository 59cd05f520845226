"""An API server double, and a stage on which the test plays the operator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kube_stage import KubeStage
from objects import fresh
from programs import Program, api_server
from rest import Cluster, Rest

_CRDS = Path(__file__).parents[3] / "operator" / "crds"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The double, with the CRDs installed."""
    folder = tmp_path_factory.mktemp("api")
    with api_server(folder, "--bookmark-seconds", "1", "--orphan-grace-seconds", "600") as program:
        api = Rest(Cluster.of(folder / "kubeconfig"))
        for path in sorted(_CRDS.glob("*.yaml")):
            document = yaml.safe_load(path.read_text())
            name = document["metadata"]["name"]
            api.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}", document, "test")
        yield program


@pytest.fixture(scope="module")
def kubeconfig(server: Program) -> Path:
    return server.log.parent / "kubeconfig"


@pytest.fixture
def stage(kubeconfig: Path, tmp_path: Path) -> Iterator[KubeStage]:
    """A namespace with one job that nobody looks after yet."""
    stage = KubeStage(Rest(Cluster.of(kubeconfig)), kubeconfig, tmp_path, fresh("ns"))
    yield stage
    stage.close()
