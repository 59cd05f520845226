"""A node of two ranks with one loader: the losses of ranks that read for themselves, over a recovery."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_runs import Jobs, Run

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def run(jobs: Jobs, loader: str, *arguments: str) -> Run:
    manifest = jobs.manifest(loader, steps=20)
    text = manifest.read_text().replace("nodes: 2", "nodes: 1\n  ranksPerNode: 2")
    manifest.write_text(text.replace("globalBatch: 8}", f"globalBatch: 8, loader: {loader}}}"))
    return jobs.run(manifest, *arguments)


def test_losses_do_not_depend_on_who_reads(jobs: Jobs) -> None:
    direct = run(jobs, "direct")
    shared = run(jobs, "shared", "--inject", "kill-rank:rank=1,step=8")
    assert (direct.code, shared.code) == (0, 0), shared.stderr
    assert len(shared.summary["incidents"]) == 1
    assert shared.losses() == direct.losses()
    assert list(Path("/dev/shm").glob("megascale-loader-*")) == []
