"""The optimizers' GPU kernels, in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch, and with pip install triton")
SCRIPT = Path(__file__).parents[2] / "support" / "fused_numerics.py"


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    """What the script printed: Triton has to be imported in a process of its own."""
    pinned = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env=os.environ | pinned,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_compute_what_the_cpu_computes(found: dict[str, float]) -> None:
    for name in ("lambError", "squaresError", "lionError", "lambSteps", "lionSteps"):
        assert found[name] < 1e-6, name


def test_bytes_per_parameter_are_at_the_floor(found: dict[str, float]) -> None:
    """Counted from the masks of every load and store; 4 more for the gradient norm make LAMB's 44."""
    assert found["lambBytes"] == pytest.approx(40, abs=0.1)
    assert found["lionBytes"] == pytest.approx(20, abs=0.1)
