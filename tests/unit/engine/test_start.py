"""Where an attempt begins: a fresh job, a snapshot in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megascale.checkpoint.snapshot import SnapshotFile, SnapshotLayout
from megascale.checkpoint.snapshot_folders import snapshot_file
from megascale.core.contract.lineage import Commit
from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.engine.context import RankLaunch
from megascale.engine.plan import make_plan
from megascale.engine.start import find_start
from megascale.errors import CheckpointCorruptError
from megascale.job import from_mapping, to_mapping

LAYOUT = SnapshotLayout("test", 0, 1, "digest", 8)


@pytest.fixture
def launch(tmp_path: Path) -> RankLaunch:
    with IndexedWriter(bin_path(tmp_path / "x"), idx_path(tmp_path / "x"), np.dtype("<u2")) as writer:
        writer.append(np.zeros(1001, dtype="<u2"))
        writer.end_document()
    sections = {
        "model": {"numLayers": 2, "hiddenSize": 32, "attentionHeads": 4},
        "data": {"path": str(tmp_path / "x"), "sequenceLength": 10, "microBatch": 1, "globalBatch": 4},
    }
    spec = {"steps": 50, "runtime": {"megatron": sections}}
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "test"}}
    manifest = to_mapping(from_mapping(head | {"spec": spec}))
    return RankLaunch(
        "test", manifest, 1, 1, 0, 1, 0, 1, "node-0", 0, "", 0, tmp_path, tmp_path / "rank", None, {}
    )


def test_a_new_job_begins_with_its_first_sample(launch: RankLaunch) -> None:
    start = find_start(launch, make_plan(launch))
    assert (start.plan.batches.before(1), start.plan.tokens_until(3), start.notes) == (0, 120, ())
    assert start.manifest is None


def from_memory(launch: RankLaunch, state: dict[str, object], folder: Path) -> RankLaunch:
    file = SnapshotFile.create(snapshot_file(folder, 0), LAYOUT)
    file.begin(0)
    file.finish(0, term=1, attempt=1, step=7, state=json.dumps(state).encode())
    return replace(launch, resume=Commit(7, 1), tier="memory", snapshot_folders=(folder / "none", folder))


def test_a_snapshot_in_memory_says_where_its_data_goes_on(launch: RankLaunch, tmp_path: Path) -> None:
    """Samples before the attempt had another batch size, which the manifest does not know any more."""
    plan = find_start(launch, make_plan(launch)).plan
    stored = plan.position.at(100).as_json()
    resumed = from_memory(launch, {"step": 7, "updates": 7, "data": stored}, tmp_path)
    start = find_start(resumed, make_plan(resumed))
    assert (start.plan.batches.before(8), start.plan.batches.before(9)) == (100, 104)
    assert (start.plan.tokens_until(8), start.notes) == (1040, ())
    assert start.plan.position_after(9).next_sample == 108


def test_a_snapshot_of_an_earlier_version_goes_on_by_its_step(launch: RankLaunch, tmp_path: Path) -> None:
    resumed = from_memory(launch, {"step": 7, "updates": 7}, tmp_path)
    assert find_start(resumed, make_plan(resumed)).plan.batches.before(8) == 28


def test_a_snapshot_that_is_not_there_is_damage(launch: RankLaunch, tmp_path: Path) -> None:
    resumed = from_memory(launch, {"step": 7, "updates": 7}, tmp_path)
    for wrong in (replace(resumed, resume=Commit(8, 1)), replace(resumed, snapshot_folders=())):
        with pytest.raises(CheckpointCorruptError, match="there is no whole copy of it") as raised:
            find_start(wrong, make_plan(wrong))
        assert raised.value.tier == "memory"
