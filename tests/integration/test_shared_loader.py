"""A node of two ranks with one loader: the losses of ranks that read for themselves, over a recovery."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_runs import Jobs, Run, wait_until

from megascale.data.loader_files import loader_prefix

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_losses_do_not_depend_on_who_reads(jobs: Jobs, undisturbed: Run) -> None:
    """The undisturbed run has one rank on each node: with `loader: auto` these read for themselves."""
    manifest = jobs.manifest("shared")
    text = manifest.read_text().replace("nodes: 2", "nodes: 1\n  ranksPerNode: 2")
    manifest.write_text(text.replace("globalBatch: 8}", "globalBatch: 8, loader: shared}"))
    prefixes = [loader_prefix(jobs.folder / "runs" / "shared", "node-0", attempt) for attempt in (1, 2)]
    process = jobs.start(manifest, "--inject", "kill-rank:rank=1,step=8")
    wait_until(lambda: files(prefixes[0]) != [])
    shared = jobs.finish(process, manifest)
    assert shared.code == 0, shared.stderr
    assert len(shared.summary["incidents"]) == 1
    assert shared.losses() == undisturbed.losses()
    assert [path for prefix in prefixes for path in files(prefix)] == []


def files(prefix: Path) -> list[Path]:
    return list(prefix.parent.glob(f"{prefix.name}*"))
