"""`megascale.checkpoint.script`: what goes in comes out, and only committed state comes out."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megascale import monitor
from megascale.checkpoint import script
from megascale.checkpoint.storage import LocalStorage
from megascale.checkpoint.store import CheckpointStore
from megascale.errors import CheckpointCorruptError, InputError
from megascale.observe.rankfile import RankFile, RankRecord


class Job:
    """The files that an agent makes for one rank."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rank_file = root / "ranks" / "node-0-0.rank"

    def launch(self, attempt: int, resume: list[int] | None, keep: int = 3) -> None:
        RankFile.create(self.rank_file, RankRecord(attempt=attempt))
        order = {
            "job": "job",
            "attempt": attempt,
            "rank": 0,
            "world_size": 1,
            "resume": resume,
            "lineage": {str(number): None for number in range(1, attempt)} | {str(attempt): resume},
            "run_dir": str(self.root),
            "spec": {"spec": {"checkpoint": {"keep": keep, "uri": None}}},
        }
        self.rank_file.with_suffix(".json").write_text(json.dumps(order))
        monitor.reporter.cache_clear()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    made = Job(tmp_path / "runs" / "job")
    monkeypatch.setenv("MEGASCALE_RANK_FILE", str(made.rank_file))
    made.launch(1, None)
    yield made
    monitor.reporter.cache_clear()


def trained() -> dict[str, Any]:
    """A model and an optimizer that have seen a step."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def test_model_and_optimizer_come_back_bit_for_bit(job: Job) -> None:
    state = trained() | {"best": math.inf, "names": ["a", None, (1, 2.5)], "empty": torch.empty(0, 2)}
    assert script.save(state, 7)
    assert RankFile.open(job.rank_file).read().saved_step == 7
    job.launch(2, [7, 1])
    found = script.load()
    assert found is not None
    assert (found["best"], found["names"], found["empty"].shape) == (math.inf, ["a", None, (1, 2.5)], (0, 2))
    for name, tensor in state["model"].items():
        assert found["model"][name].dtype == tensor.dtype
        assert torch.equal(found["model"][name], tensor), name
    fresh = torch.optim.AdamW(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).parameters()
    )
    fresh.load_state_dict(found["optimizer"])
    for number, moments in state["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(found["optimizer"]["state"][number][name], value), (number, name)


def test_a_fresh_start_and_a_start_outside_of_a_job_load_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.load() is None
    monkeypatch.delenv("MEGASCALE_RANK_FILE")
    assert script.load() is None
    assert script.save({"a": torch.ones(1)}, 1) is False
    assert not (job.root / "checkpoints").exists()


def test_old_checkpoints_are_pruned(job: Job) -> None:
    job.launch(1, None, keep=2)
    for step in (1, 2, 3):
        script.save({"a": torch.full((2,), step)}, step)
    assert sorted(path.name for path in (job.root / "checkpoints" / "commits").iterdir()) == [
        "2.1.json",
        "3.1.json",
    ]


def test_a_save_whose_pruning_fails_counts_and_raises_an_alert(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def names(_storage: LocalStorage, _folder: str) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(LocalStorage, "names", names)
    assert script.save({"a": torch.ones(1)}, 4)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('megascale.alert {"kind": "checkpointPruneFailed", "message": "cannot list ')
    assert RankFile.open(job.rank_file).read().saved_step == 4


def test_tensors_whose_keys_look_alike_are_all_kept(job: Job) -> None:
    def number(value: int) -> torch.Tensor:
        return torch.tensor([value])

    state = {
        "a.b": number(1),
        "a": {"b": number(2), "": number(3), "c": [number(4)], "~1": number(5), "/": number(6)},
        "a/b": number(7),
        "a~1b": number(8),
        1: number(9),
        "1": number(10),
        "~'1'": number(11),
        -1: {"x": number(12)},
        "-1": {"x": number(13)},
        "l": [number(14), [number(15)]],
        "l/1": [number(16)],
        "": number(17),
    }
    assert script.save(state, 3)  # type: ignore[arg-type]
    job.launch(2, [3, 1])
    assert script.load() == state


def test_a_checkpoint_whose_names_are_joined_by_dots_is_loaded(job: Job) -> None:
    """As they were written before keys were escaped."""
    tensor = torch.arange(3)
    packed = {"tensor": "state.model.0.weight", "shape": [3], "dtype": "int64"}
    state = {"dict": [["model", {"dict": [["0.weight", packed]]}]]}
    script.save_pieces(
        CheckpointStore(job.root / "checkpoints"),
        step=2,
        attempt=1,
        parent=None,
        pieces=[script._piece("state.model.0.weight", tensor)],
        job_state={"step": 2, "structure": state},
        rank_state={},
        layout={"data": 1},
        rank=0,
        world_size=1,
        agree=lambda ok: ok,
        at_point=lambda _point: None,
        job="job",
    )
    job.launch(2, [2, 1])
    found = script.load()
    assert found is not None
    assert torch.equal(found["model"]["0.weight"], tensor)


def test_state_that_is_no_plain_data_is_refused_by_name(job: Job) -> None:
    with pytest.raises(InputError, match=r"state/schedule/1: cannot save a function"):
        script.save({"schedule": [1, trained]}, 1)
    with pytest.raises(InputError, match=r"state: key \(1, 2\) is a tuple"):
        script.save({(1, 2): 1}, 1)  # type: ignore[dict-item]


def test_a_damaged_checkpoint_is_not_loaded(job: Job) -> None:
    script.save({"a": torch.ones(100)}, 5)
    shard = job.root / "checkpoints" / "step-5" / "attempt-1" / "rank-0.bin"
    raw = bytearray(shard.read_bytes())
    raw[200] ^= 1
    shard.write_bytes(raw)
    job.launch(2, [5, 1])
    with pytest.raises(CheckpointCorruptError):
        script.load()
