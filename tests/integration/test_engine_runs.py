"""Attempts of real engine ranks over gloo: layouts agree, interruptions leave no trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from engine_jobs import LAYOUTS, STEPS, Zygote

from megascale.checkpoint import CheckpointStore
from megascale.core.contract.lineage import Commit
from megascale.engine.loop import EXIT_UNSAVED
from megascale.observe.rankfile import Control

TOLERANCE = {
    # Data and pipeline parallelism only change the order in which losses and gradients are summed;
    # tensor parallelism also splits the sums inside each layer.
    "data": 1e-6,
    "pipeline": 1e-6,
    "tensor": 1e-5,
}


def test_preload_leaves_one_thread(zygote: Zygote) -> None:
    assert zygote.threads == 1


@pytest.mark.parametrize(("launch", "steps"), [({}, [2, 4, 5]), ({"saveEverySteps": 3}, [3, 5])])
def test_ranks_save_as_often_as_their_launch_says(
    new_job: Any, spec: Any, launch: dict[str, int], steps: list[int]
) -> None:
    job = new_job()
    job.complete(spec(2), 2, **launch)
    assert [commit.step for commit in CheckpointStore(job.folder / "checkpoints").commits()] == steps


VARIANTS: dict[str, dict[str, Any]] = {
    "parallel-lamb": {},
    "serial-adamw": {
        "model": {"block": "serial", "norm": "rmsnorm", "activation": "swiglu", "tiedEmbeddings": False},
        "optimizer": {"name": "adamw"},
    },
    "parallel-recompute": {
        "model": {"qkNorm": True, "windowPattern": "SL", "withinDocuments": True},
        "recompute": "full",
    },
    "serial-experts": {
        "model": {"block": "serial", "experts": 4, "expertsPerToken": 2, "qkNorm": True},
    },
    "parallel-experts": {"model": {"experts": 4, "expertsPerToken": 2, "activation": "swiglu"}},
}


@pytest.fixture(scope="module")
def single_process() -> dict[str, list[dict[str, Any]]]:
    """Step records of one process, by variant; filled by the first test that needs them."""
    return {}


@pytest.mark.parametrize(
    ("layout", "variant"),
    [
        *((layout, "parallel-lamb") for layout in LAYOUTS),
        *((layout, "serial-adamw") for layout in ("dp2", "tp2-sequence", "tp2-pp2")),
        *((layout, "parallel-recompute") for layout in ("tp2", "tp2-sequence", "pp2-interleaved")),
        *((layout, "serial-experts") for layout in ("dp2", "pp2", "tp2-sequence")),
        *((layout, "parallel-experts") for layout in ("dp2", "tp2-sequence")),
    ],
)
def test_every_layout_trains_like_one_process(
    layout: str, variant: str, new_job: Any, spec: Any, single_process: dict[str, list[dict[str, Any]]]
) -> None:
    choices = VARIANTS[variant]
    if variant not in single_process:
        reference = new_job("reference")
        reference.complete(spec(1, **choices), 1)
        single_process[variant] = list(reference.records().values())
    world, parallelism, kind = LAYOUTS[layout]
    job = new_job()
    job.complete(spec(world, parallelism=parallelism, **choices), world)
    for ours, theirs in zip(job.records().values(), single_process[variant], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=TOLERANCE[kind])
        assert ours["gradNorm"] == pytest.approx(theirs["gradNorm"], rel=10 * TOLERANCE[kind])


@pytest.mark.parametrize(
    ("world", "parallelism"),
    [(2, {}), (4, {"pipeline": 2, "interleave": 2}), (4, {"tensor": 2, "sequence": True})],
)
def test_overlap_changes_no_bit(world: int, parallelism: dict[str, Any], new_job: Any, spec: Any) -> None:
    """Every switch off against all on, with buckets so small that a chunk has several."""
    off, on = new_job("off"), new_job("on")
    everything = dict.fromkeys(("gradientReduce", "parameterGather", "pipeline", "tensor"), False)
    off.complete(spec(world, parallelism=parallelism, overlap=everything), world)
    on.complete(spec(world, parallelism=parallelism, overlap={"bucketSize": 3000, "tensor": True}), world)
    assert on.losses() == off.losses()
    for line in ("overlap gradientReduce: on (supported)", "overlap parameterGather: on (supported)"):
        assert line in on.logs()
    assert "overlap parameterGather: off (switched off)" in off.logs()
    interleaved = "interleave" in parallelism
    assert ("overlap pipeline: on" in on.logs()) == interleaved
    split = "tensor" in parallelism
    assert ("overlap tensor: off (needs GPUs, this rank has cpu)" in on.logs()) == split
    assert ("overlap tensor: off (switched off)" in off.logs()) == split


@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2-interleaved", "tp2-pp2"])
def test_a_killed_and_resumed_run_repeats_every_loss_bit_for_bit(
    layout: str, new_job: Any, spec: Any
) -> None:
    world, parallelism, _ = LAYOUTS[layout]
    whole, broken = new_job("whole"), new_job("broken")
    whole.complete(spec(world, parallelism=parallelism), world)
    fault = {"kind": "killRank", "rank": world - 1, "step": 4}
    statuses = broken.attempt(spec(world, parallelism=parallelism, faults=[fault]), world)
    assert statuses[-1] == -9
    assert max(broken.records()) == 3
    marker = json.loads((broken.folder / "faults" / "0").read_text())
    assert (marker["kind"], marker["step"]) == ("killRank", 4)
    # The same manifest again: the fault has happened and does not come back.
    broken.complete(
        spec(world, parallelism=parallelism, faults=[fault]), world, resume=Commit(step=2, attempt=1)
    )
    assert broken.losses() == whole.losses()


@pytest.mark.parametrize(
    ("layout", "choices"),
    [
        ("dp2", VARIANTS["serial-experts"]),
        ("tp2-sequence", {"precision": "bf16"}),
        ("pp2-interleaved", {}),
        ("tp2-pp2", {"optimizer": {"name": "adamw"}}),
    ],
)
def test_a_run_resumed_from_memory_repeats_every_loss_bit_for_bit(
    layout: str, choices: dict[str, Any], new_job: Any, spec: Any
) -> None:
    """No commit is needed: every rank goes on from what it holds itself, after the step before the kill."""
    world, parallelism, _ = LAYOUTS[layout]
    choices = choices | {"parallelism": parallelism, "checkpoint": {"everySteps": 100}}
    whole, broken = new_job("whole"), new_job("broken")
    whole.complete(spec(world, **choices), world)
    snapshots = str(broken.folder / "snapshots")
    killed = spec(world, faults=[{"kind": "killRank", "rank": 0, "step": 4}], **choices)
    assert broken.attempt(killed, world, snapshots=snapshots)[0] == -9
    resume = Commit(step=3, attempt=1)
    assert broken.attempt(killed, world, resume=resume, tier="memory", snapshots=snapshots) == [0] * world
    steps = [json.loads(line)["step"] for line in (broken.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
    assert broken.losses() == whole.losses()


def test_without_a_place_for_one_rank_nobody_takes_snapshots(new_job: Any, spec: Any) -> None:
    """A rank that took part alone in deciding the cadence would wait for the others for ever."""
    job = new_job()
    (job.folder / "snapshots").mkdir()
    (job.folder / "snapshots" / "1").write_text("not a folder")
    assert job.attempt(spec(2, steps=12), 2, snapshots=str(job.folder / "snapshots")) == [0, 0]
    assert job.logs().count('megascale.alert {"kind": "noSnapshots"') == 1
    assert [job.record_of(rank).snapshot_step for rank in (0, 1)] == [-1, -1]


def test_a_rank_without_the_snapshot_says_which_tier_failed(new_job: Any, spec: Any) -> None:
    job = new_job()
    snapshots = str(job.folder / "snapshots")
    job.attempt(spec(2), 2, snapshots=snapshots)
    assert [job.record_of(rank).snapshot_step for rank in (0, 1)] == [STEPS, STEPS]
    statuses = job.attempt(spec(2), 2, resume=Commit(step=2, attempt=1), tier="memory", snapshots=snapshots)
    assert 1 in statuses
    assert "snapshot in memory of step 2: there is no whole copy of it" in job.logs()


def test_a_batch_changed_on_resume_goes_on_where_the_samples_stopped(new_job: Any, spec: Any) -> None:
    """As a ramp of the same sizes: from a checkpoint, and then from memory, which has the position too."""
    sizes, constant = {"start": 4, "increment": 4, "everySteps": 2}, {"schedule": {"name": "constant"}}
    ramp, changed = new_job("ramp"), new_job("changed")
    ramp.complete(spec(2, data={"batchRamp": sizes}, optimizer=constant), 2)
    changed.complete(spec(2, steps=2, data={"globalBatch": 4}, optimizer=constant), 2)
    killed = spec(2, optimizer=constant, faults=[{"kind": "killRank", "rank": 0, "step": 4}])
    snapshots = str(changed.folder / "snapshots")
    assert changed.attempt(killed, 2, resume=Commit(2, 1), snapshots=snapshots)[0] == -9
    assert changed.logs().count("the batch sizes changed: step 3 begins with sample 8") == 1
    changed.complete(killed, 2, resume=Commit(3, 2), tier="memory", snapshots=snapshots)
    assert changed.losses() == ramp.losses()
    tokens = [[record["tokens"] for record in job.records().values()] for job in (changed, ramp)]
    assert tokens[0] == tokens[1]
    assert changed.logs().count("the batch sizes changed") == 1


def test_another_model_is_refused_by_every_rank_before_they_meet(new_job: Any, spec: Any) -> None:
    job = new_job()
    job.complete(spec(2, steps=2), 2)
    assert job.attempt(spec(2, model={"hiddenSize": 64}), 2, resume=Commit(2, 1)) == [1, 1]
    assert (
        job.logs().count("SettingsError: spec.runtime.megatron.model.hiddenSize is 64, the checkpoint") == 2
    )


def test_a_checkpoint_resumes_under_another_layout(new_job: Any, spec: Any) -> None:
    whole, moved = new_job("whole"), new_job("moved")
    whole.complete(spec(2), 2)
    moved.attempt(spec(2, faults=[{"kind": "killRank", "rank": 0, "step": 3}]), 2)
    moved.complete(spec(4, parallelism={"tensor": 2, "pipeline": 2}), 4, resume=Commit(step=2, attempt=1))
    assert moved.losses() == pytest.approx(whole.losses(), rel=TOLERANCE["tensor"])


@pytest.mark.parametrize("point", ["save", "commit"])
def test_a_rank_killed_while_saving_leaves_the_checkpoint_before(point: str, new_job: Any, spec: Any) -> None:
    job = new_job()
    statuses = job.attempt(spec(2, faults=[{"kind": "killRank", "rank": 0, "step": 4, "point": point}]), 2)
    assert statuses[0] == -9
    assert CheckpointStore(job.folder / "checkpoints").commits() == [Commit(step=2, attempt=1)]


def test_a_failing_save_raises_an_alert_and_training_goes_on(new_job: Any, spec: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    job = new_job()
    nowhere = {"uri": str(tmp_path / "file" / "checkpoints"), "saveSeconds": 4}
    assert job.attempt(spec(2, checkpoint=nowhere), 2) == [EXIT_UNSAVED, EXIT_UNSAVED]
    assert len(job.losses()) == STEPS
    failed = 'megascale.alert {"kind": "checkpointSaveFailed", "message": "step %d: '
    assert [job.logs().count(failed % step) for step in (2, 4)] == [1, 1]
    assert job.logs().count(failed % STEPS) >= 2  # it is tried again
    assert job.logs().count('megascale.alert {"kind": "lastSaveFailed"') == 1
    assert job.record_of(0).saved_step == -1


def test_a_batch_that_grows_uses_every_sample_once(new_job: Any, spec: Any) -> None:
    """2, 2, 4, 4, 6 samples: alike on one rank and on two, and across a restart within the ramp."""
    ramp = {"globalBatch": 6, "batchRamp": {"start": 2, "increment": 2, "everySteps": 2}}
    whole, split, broken = new_job("whole"), new_job("split"), new_job("broken")
    whole.complete(spec(1, data=ramp), 1)
    split.complete(spec(2, data=ramp), 2)
    assert split.losses() == pytest.approx(whole.losses(), rel=TOLERANCE["data"])
    assert [record["tokens"] // 32 for record in whole.records().values()] == [2, 4, 8, 12, 18]
    fault = [{"kind": "killRank", "rank": 0, "step": 4}]
    broken.attempt(spec(2, data=ramp, faults=fault), 2)
    broken.complete(spec(2, data=ramp), 2, resume=Commit(step=2, attempt=1))
    assert broken.losses() == split.losses()
    saved = CheckpointStore(broken.folder / "checkpoints").manifest(Commit(step=4, attempt=2))
    assert saved.job_state["nextSample"] == 12


def test_a_request_to_stop_reaches_all_ranks_in_the_same_step(new_job: Any, spec: Any) -> None:
    job = new_job()
    statuses = job.attempt(spec(2, steps=50), 2, control=Control.SAVE_AND_EXIT)
    assert statuses == [76, 76]
    assert CheckpointStore(job.folder / "checkpoints").commits() == [Commit(step=1, attempt=1)]
    assert [job.record_of(rank).saved_step for rank in (0, 1)] == [1, 1]


def test_a_request_to_save_is_obeyed_once(new_job: Any, spec: Any) -> None:
    job = new_job()
    assert job.attempt(spec(2, checkpoint={"everySteps": 4}), 2, control=Control.SAVE) == [0, 0]
    steps = [commit.step for commit in CheckpointStore(job.folder / "checkpoints").commits()]
    assert sorted(steps) == [1, 4, 5]


def test_gradients_that_are_not_finite_raise_an_alert_and_change_nothing(new_job: Any, spec: Any) -> None:
    job = new_job()
    explosive = {"name": "adamw", "lr": 100.0, "weightDecay": 10.0, "schedule": {"name": "constant"}}
    job.complete(spec(2, optimizer=explosive), 2)
    finite = [record for record in job.records().values() if None not in (record["loss"], record["gradNorm"])]
    assert 0 < len(finite) < STEPS
    assert job.logs().count('megascale.alert {"kind": "nonFiniteLoss"') == STEPS - len(finite)
    saved = CheckpointStore(job.folder / "checkpoints").manifest(Commit(step=STEPS, attempt=1))
    assert saved.job_state["updates"] == len(finite)


def test_bf16_trains_close_to_fp32_and_resumes_bit_for_bit(new_job: Any, spec: Any) -> None:
    exact, rounded, resumed = new_job("fp32"), new_job("bf16"), new_job("resumed")
    exact.complete(spec(2), 2)
    rounded.complete(spec(2, precision="bf16"), 2)
    assert rounded.losses() == pytest.approx(exact.losses(), rel=5e-3)
    fault = {"kind": "killRank", "rank": 1, "step": 4}
    resumed.attempt(spec(2, precision="bf16", faults=[fault]), 2)
    resumed.complete(spec(2, precision="bf16"), 2, resume=Commit(step=2, attempt=1))
    assert resumed.losses() == rounded.losses()


def test_attention_stays_within_documents(new_job: Any, spec: Any) -> None:
    """Lines are documents here: tokens see less, so losses differ from the first step on."""
    across, within = new_job("across"), new_job("within")
    across.complete(spec(1, steps=1), 1)
    within.complete(spec(1, steps=1, model={"withinDocuments": True}), 1)
    assert across.losses() != within.losses()
    assert "attention: reference (flash needs a CUDA device" in within.logs()


def test_ranks_count_the_places_where_they_meet(new_job: Any, spec: Any) -> None:
    job = new_job()
    fault = {"kind": "killRank", "rank": 1, "step": 3}
    world, parallelism, _ = LAYOUTS["pp2-interleaved"]
    job.attempt(spec(world, parallelism=parallelism, faults=[fault]), world)
    # Per step 8 micro-batches x 2 chunks x 2 directions and the update; a save after step 2.
    behind, ahead = job.record_of(1), job.record_of(0)
    assert (behind.collectives, behind.collective) == (2 * 33 + 1, "save 2")
    assert behind.collectives < ahead.collectives
    assert ahead.collective.startswith("forward")


def test_the_rank_record_tells_where_the_rank_is(new_job: Any, spec: Any) -> None:
    job = new_job()
    job.complete(spec(2), 2)
    record = job.record_of(1)
    assert record.step == STEPS
    assert record.tokens == STEPS * 8 * 32
    assert 0 < record.groups_at < record.loaded_at < record.first_step_at < record.progress_at
    assert record.loss == job.losses()[-1]
    assert 0 < record.flops < record.peak_flops
    assert (record.saved_step, record.saved_attempt) == (STEPS, 1)
    last = job.records()[STEPS]
    assert {"job", "attempt", "term", "rank", "node", "lr", "stepSeconds", "dataSeconds"} < set(last)
    assert last["peakFlops"] == job.record_of(0).peak_flops > last["flops"]
