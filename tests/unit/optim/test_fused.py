"""The optimizers' GPU kernels: numbers in Triton's interpreter, memory accesses as compiled for an H100."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton comes with CUDA builds of torch, and with pip install triton")
SUPPORT = Path(__file__).parents[2] / "support"


def printed(script: str, **environment: str) -> Any:
    """What a script prints: each way needs a process that has not imported Triton in the other."""
    done = subprocess.run(
        [sys.executable, SUPPORT / script],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return printed("fused_numerics.py", TRITON_INTERPRET="1")


def test_kernels_compute_what_the_cpu_computes(found: dict[str, float]) -> None:
    for name in ("lambError", "squaresError", "lionError", "lambSteps", "lionSteps"):
        assert found[name] < 1e-6, name


def test_bytes_per_parameter_are_at_the_floor(found: dict[str, float]) -> None:
    """Counted from the masks of every load and store; 4 more for the gradient norm make LAMB's 44."""
    assert found["lambBytes"] == pytest.approx(40, abs=0.1)
    assert found["lionBytes"] == pytest.approx(20, abs=0.1)


def test_threads_move_four_values_at_once() -> None:
    """Two vectors of each of a kernel's tensors; where addresses or sizes are odd, values one by one."""
    accesses = printed("fused_compiled.py")
    for kernel, loads, stores in (("directions", 4, 3), ("apply", 2, 1), ("lion", 3, 2)):
        aligned, odd = accesses[f"{kernel}1"], accesses[f"{kernel}0"]
        assert (aligned["ldVector"], aligned["stVector"]) == (2 * loads, 2 * stores), kernel
        assert aligned["ldScalar"] == 0
        assert (odd["ldVector"], odd["ldScalar"]) == (0, 8 * loads), kernel
