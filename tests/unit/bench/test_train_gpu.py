"""The GPU benchmark runs as a whole with toy shapes, and says so where there is no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "train_gpu.py"
STAGES = (
    "serial + full attention",
    "+ parallel block",
    "+ window",
    "+ compiled layers",
    "+ LAMB, batch x3",
)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, *options],
        env=os.environ | pinned,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.slow
def test_every_stage_of_the_ablation_and_the_rival_run() -> None:
    done = run("--smoke")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(toy\S*) +(.+?) +([\d,]+) tokens/s", done.stdout, re.MULTILINE)
    rival = ("toy", "plain torch, compiled")
    assert [row[:2] for row in rows] == [
        *(("toy", stage) for stage in STAGES),
        rival,
        *(("toy/2", stage) for stage in STAGES),
    ]
    assert all(int(tokens.replace(",", "")) > 0 for _, _, tokens in rows)
    assert "of the matmul ceiling (floor 80%)" in done.stdout
    assert "x the tokens/s of plain torch, compiled" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("no GPU here: nothing was measured")
    assert done.stderr.count("\n") == 1
