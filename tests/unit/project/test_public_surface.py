"""What `megascale` exports, and what its api modules declare."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import megascale

ROOT = Path(__file__).parents[3]
APIS = ("cli", "core", "driver", "job", "model")


def loaded_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after the statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(out.stdout.split())


@pytest.mark.parametrize("name", megascale.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(megascale, name)


def test_a_manifest_is_loaded_by_the_exported_function() -> None:
    assert megascale.load_job(ROOT / "examples" / "quickstart.yaml").metadata.name == "quickstart"


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'moon'"):
        _ = megascale.moon  # type: ignore[attr-defined]


def test_nothing_is_imported_before_it_is_used() -> None:
    assert {name for name in loaded_by("import megascale") if name.startswith("megascale.")} == set()
    assert "torch" not in loaded_by("from megascale import checkpoint, load_job, monitor")


@pytest.mark.parametrize("package", APIS)
def test_declared_names_are_there(package: str) -> None:
    module = importlib.import_module(f"megascale.{package}.api")
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    public = {name for name in vars(module) if not name.startswith("_")}
    assert public == set(module.__all__)


def test_declared_names_need_no_torch() -> None:
    assert "torch" not in loaded_by("\n".join(f"import megascale.{package}.api" for package in APIS))
