"""Small parts of a rank: its plan, its metrics, its peak rate, its alerts."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
from pathlib import Path
from typing import Any

import pytest

from megascale.checkpoint.storage import LocalStorage
from megascale.data.position import Dataset, Position
from megascale.engine.context import RankLaunch
from megascale.engine.metrics import MetricsLog
from megascale.engine.peak import PeakFile, measure_flops, rated_flops
from megascale.engine.plan import make_plan
from megascale.engine.saving import Checkpointer
from megascale.errors import InputError
from megascale.job import from_mapping, to_mapping
from megascale.observe.alerts import PREFIX, alert


def launch(world_size: int, **parallelism: Any) -> RankLaunch:
    sections = {
        "model": {"numLayers": 2, "hiddenSize": 32, "attentionHeads": 4},
        "data": {"path": "data", "sequenceLength": 32, "microBatch": 1, "globalBatch": 24},
        "parallelism": parallelism,
    }
    spec = {"nodes": 4, "steps": 5, "runtime": {"megatron": sections}}
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "test"}}
    manifest = to_mapping(from_mapping(head | {"spec": spec}))
    # What the agent was sent over the wire.
    manifest = json.loads(json.dumps(manifest))
    return RankLaunch(
        "test", manifest, 1, 1, 0, world_size, 0, 1, "node-0", 0, "", 0, Path(), Path(), None, {}
    )


def test_data_parallelism_follows_from_the_ranks_of_the_launch() -> None:
    assert make_plan(launch(4, tensor=2)).layout.data == 2
    shrunk = make_plan(launch(2, tensor=2))
    assert (shrunk.layout.tensor, shrunk.layout.data) == (2, 1)
    begun = shrunk.going_on(0, Position(1, 32, (Dataset("data", 1000, 1.0),)))
    assert begun.tokens_until(2) == 2 * 24 * 32


def test_ranks_that_do_not_fit_the_layout_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"3 ranks were launched, expected a multiple of tensor 2 x pipeline 1"
    ):
        make_plan(launch(3, tensor=2))


def test_context_parallelism_is_refused_with_an_alternative() -> None:
    with pytest.raises(InputError, match=r"context is 2, expected 1.*tensor with sequence: true"):
        make_plan(launch(4, context=2))


def test_metrics_keep_every_bit_and_write_what_is_not_finite_as_null(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    for loss in (0.1 + 0.2, math.nan, 5e-324):
        with MetricsLog(path) as log:
            log.append({"loss": loss, "step": 1})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [0.1 + 0.2, None, 5e-324]


def test_the_peak_is_measured_once_per_node(tmp_path: Path) -> None:
    assert PeakFile(tmp_path, "node-0").read() is None
    PeakFile(tmp_path, "node-0").write(5e9)
    assert PeakFile(tmp_path, "node-0").read() == 5e9
    assert PeakFile(tmp_path, "node-1").read() is None


def test_peak_rates() -> None:
    assert rated_flops("NVIDIA H200") == 989e12
    assert rated_flops("NVIDIA H100 PCIe") == 756e12
    assert rated_flops("something new") == 0.0
    assert 1e8 < measure_flops(0.02) < 1e14


def test_an_alert_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    alert("checkpointSaveFailed", "disk full\nreally")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert json.loads(line.removeprefix(PREFIX)) == {
        "kind": "checkpointSaveFailed",
        "message": "disk full\nreally",
    }


def test_checkpoints_that_cannot_be_pruned_raise_an_alert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    order = dataclasses.replace(launch(4, tensor=2), run_dir=tmp_path)
    nothing: Any = None
    checkpointer = Checkpointer(order, make_plan(order), nothing, nothing, nothing)

    def names(_storage: LocalStorage, _folder: str) -> list[str]:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(LocalStorage, "names", names)
    checkpointer._prune()
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line.removeprefix(PREFIX)) == {
        "kind": "checkpointPruneFailed",
        "message": f"cannot list {tmp_path}/checkpoints/commits: Stale file handle",
    }
