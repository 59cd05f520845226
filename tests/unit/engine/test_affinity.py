"""Ranks stay on the cores next to their GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megascale.engine.affinity import cores_beside, parse_cores

TRY = """
import os
from megascale.engine.affinity import stay_on
print(stay_on({cores}))
print(os.sched_getaffinity(0))
"""


@pytest.mark.parametrize(
    ("text", "cores"),
    [("0-3,8\n", {0, 1, 2, 3, 8}), ("5", {5}), ("\n", set()), ("0-1,64-65", {0, 1, 64, 65})],
)
def test_the_kernels_lists(text: str, cores: set[int]) -> None:
    assert parse_cores(text) == cores


def test_cores_of_a_device(tmp_path: Path) -> None:
    (tmp_path / "0000:4b:00.0").mkdir()
    (tmp_path / "0000:4b:00.0" / "local_cpulist").write_text("32-35\n")
    assert cores_beside("0000:4b:00.0", tmp_path) == {32, 33, 34, 35}
    assert cores_beside("0000:ff:00.0", tmp_path) == set()


def kept(cores: set[int]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", TRY.format(cores=cores)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


def test_a_process_stays_on_those_it_may_use() -> None:
    own = min(os.sched_getaffinity(0))
    assert kept({own, 100_000}) == ["threads: on the 1 cores next to the GPU", str({own})]
    assert kept({100_000}) == ["threads: on any core", str(os.sched_getaffinity(0))]
