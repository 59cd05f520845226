"""Collectives inside the parallel block's products, on two ranks over gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megascale.model.symmetric import unsupported

SCRIPT = Path(__file__).parents[2] / "support" / "symmetric_numerics.py"
PINNED = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def test_overlapped_blocks_compute_what_plain_ones_do() -> None:
    """Two layers, forward and backward: as many gathers and scatters as the plain parallel block has."""
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env=os.environ | PINNED,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for cases in json.loads(done.stdout):
        assert set(cases) == {"gelu", "swiglu", "experts"}
        for found in cases.values():
            assert found["loss"] < 1e-6
            assert found["gradients"] < 1e-5
            assert (found["gather"], found["scatter"]) == (4, 4)


def test_a_cpu_has_no_memory_that_peers_read() -> None:
    assert unsupported(torch.device("cpu"), [0, 1]) == "needs GPUs, this rank has cpu"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT TESTED: symmetric memory needs two GPUs")
def test_gpus_of_a_node_share_memory() -> None:
    assert unsupported(torch.device("cuda", 0), [0, 1]) is None
