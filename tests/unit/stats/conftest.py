"""The trace generator of the benchmarks, so that tests and benchmarks judge the same traces."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def traces() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "traces.py"
    spec = importlib.util.spec_from_file_location("benchmark_traces", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
