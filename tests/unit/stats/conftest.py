"""The trace generators of the benchmarks, so that tests and benchmarks judge the same traces."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

_BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, _BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the generators import each other by these names
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def traces() -> ModuleType:
    return _load("traces")


@pytest.fixture(scope="session")
def traces_other(traces: ModuleType) -> ModuleType:
    del traces  # has to be loaded first
    return _load("traces_other")
