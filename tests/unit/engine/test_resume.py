"""What a resume changes, told from the settings that a checkpoint stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megascale.data.indexed import IndexedWriter, bin_path, idx_path
from megascale.data.position import Position
from megascale.data.ramp import BatchSizes
from megascale.engine.resume import check_shapes, continuation, settings_of
from megascale.errors import SettingsError
from megascale.job.megatron import Megatron
from megascale.model.inventory import weights
from megascale.model.shape import ModelShape

STEP, STEPS = 20, 40


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x"
    with IndexedWriter(bin_path(path), idx_path(path), np.dtype("<u2")) as writer:
        writer.append(np.zeros(10_001, dtype="<u2"))
        writer.end_document()
    return path


def megatron(prefix: Path, **sections: dict[str, Any]) -> Megatron:
    data = {"path": str(prefix), "sequenceLength": 10, "microBatch": 1, "globalBatch": 8}
    model = {"numLayers": 2, "hiddenSize": 32, "attentionHeads": 4}
    given = {"model": model, "data": data}
    return Megatron.model_validate(
        {name: given.get(name, {}) | sections.get(name, {}) for name in given | sections}
    )


def saved(before: Megatron, step: int = STEP, steps: int = STEPS) -> dict[str, Any]:
    """The job state of a checkpoint, as JSON brings it back."""
    used = BatchSizes.of(before.data).before(step + 1)
    position = Position.start(before.data, before.seed).at(used)
    state = {"step": step, "nextSample": used, "data": position.as_json()}
    whole: dict[str, Any] = json.loads(json.dumps(state | {"settings": settings_of(before, steps)}))
    return whole


def test_nothing_is_said_when_nothing_changed(prefix: Path) -> None:
    same = megatron(prefix)
    found = continuation(STEP, saved(same), same, STEPS)
    assert (found.notes, found.position.next_sample, found.position.tokens) == ((), 160, 1600)


def test_another_batch_size_goes_on_where_the_checkpoint_stopped(prefix: Path) -> None:
    ramp = {"start": 2, "increment": 2, "everySteps": 5}
    before = megatron(prefix, data={"batchRamp": ramp})
    found = continuation(STEP, saved(before), megatron(prefix, data={"globalBatch": 4}), STEPS)
    used = 5 * (2 + 4 + 6 + 8)
    assert found.position.next_sample == used
    assert found.notes == (
        f"the batch sizes changed: step 21 begins with sample {used}, where step 20 stopped",
    )


def test_a_changed_batch_size_is_said_once(prefix: Path) -> None:
    """Checkpoints after the change have the new size and a position that does not follow from it."""
    after = megatron(prefix, data={"globalBatch": 4})
    state = saved(after) | {"nextSample": 777}
    state["data"] = Position.start(after.data, after.seed).at(777).as_json()
    found = continuation(STEP, state, after, STEPS)
    assert (found.notes, found.position.next_sample) == ((), 777)


def test_states_of_earlier_versions_and_of_snapshots(prefix: Path) -> None:
    same = megatron(prefix)
    old = continuation(STEP, {"step": STEP, "updates": STEP, "nextSample": 200}, same, STEPS)
    assert old.position.next_sample == 200
    assert "begins with sample 200" in old.notes[0]
    assert continuation(STEP, {"step": STEP}, same, STEPS).position.next_sample == 160
    snapshot = {"step": STEP, "data": Position.start(same.data, same.seed).at(99).as_json()}
    found = continuation(STEP, snapshot, same, STEPS)
    assert (found.notes, found.position.next_sample) == ((), 99)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hiddenSize": 64},
            "model.hiddenSize is 64, the checkpoint of step 20 was trained with 32; change it",
        ),
        ({"attentionHeads": 2}, "model.attentionHeads is 2, .* with 4"),
        ({"vocabSize": 400}, "model.vocabSize is 400, .* with 257"),
        ({"block": "serial"}, "model.block is serial, .* with parallel"),
    ],
)
def test_another_model_is_refused_by_field(prefix: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        continuation(STEP, saved(megatron(prefix)), megatron(prefix, model=change), STEPS)


def test_what_a_model_may_change_is_said(prefix: Path) -> None:
    def notes(**change: Any) -> tuple[str, ...]:
        return continuation(STEP, saved(megatron(prefix)), megatron(prefix, model=change), STEPS).notes

    assert notes(attention="reference") == notes(initStd=0.5) == ()
    assert "model.window is 16, the checkpoint of step 20 was trained with None" in notes(window=16)[0]
    assert "both take the same 320 rows" in notes(vocabSize=300)[0]


def test_an_optimizer_with_other_state_is_refused(prefix: Path) -> None:
    def notes(name: str) -> tuple[str, ...]:
        return continuation(
            STEP, saved(megatron(prefix)), megatron(prefix, optimizer={"name": name}), STEPS
        ).notes

    assert "goes on with the same moments" in notes("adamw")[0]
    with pytest.raises(SettingsError, match=r"optimizer.name is lion, .* with lamb, whose state is"):
        notes("lion")


def rate_notes(prefix: Path, steps: int, before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    state = saved(megatron(prefix, optimizer=before), steps=STEPS)
    return continuation(STEP, state, megatron(prefix, optimizer=now), steps).notes


def test_a_longer_job_that_bends_its_curve_is_warned_about(prefix: Path) -> None:
    (note,) = rate_notes(prefix, 80, {"lr": 0.002}, {"lr": 0.002})
    assert "the learning rate of step 21 is 0.00168; " in note
    assert "it would be 0.000922: spec.steps was 40, is 80" in note
    assert "set spec.runtime.megatron.optimizer.schedule.decaySteps to 40 to keep the curve" in note
    kept = {"lr": 0.002, "schedule": {"decaySteps": 40}}
    assert rate_notes(prefix, 80, {"lr": 0.002}, kept) == ()


def test_only_a_change_of_what_remains_is_said(prefix: Path) -> None:
    constant = {"lr": 0.002, "schedule": {"name": "constant"}}
    assert rate_notes(prefix, 80, constant, constant) == ()
    warm = {"lr": 0.002, "schedule": {"name": "constant", "warmupSteps": 7}}
    assert rate_notes(prefix, STEPS, constant, warm) == ()
    late = {"lr": 0.002, "schedule": {"name": "wsd", "decayFraction": 0.1}}
    (note,) = rate_notes(prefix, STEPS, constant, late)
    assert "the learning rate of step 37 is 0.0015; " in note
    (note,) = rate_notes(prefix, STEPS, constant, constant | {"lr": 0.001})
    assert "step 21 is 0.001; with the settings of the checkpoint of step 20 it would be 0.002" in note
    assert "decaySteps" not in note


def test_a_schedule_of_another_version_does_not_stop_the_resume(prefix: Path) -> None:
    same = megatron(prefix)
    state = saved(same)
    state["settings"]["optimizer"]["momentum"] = 0.5
    assert "cannot be compared" in continuation(STEP, state, same, STEPS).notes[0]


def test_shapes_of_a_checkpoint_without_settings(prefix: Path) -> None:
    same = megatron(prefix)
    tensors = {f"{w.name}/master": w.shape for w in weights(ModelShape.of(same.model))}
    check_shapes(STEP, tensors, same)
    with pytest.raises(
        SettingsError, match=r"model needs embedding.weight of shape \(320, 64\), .*\(320, 32\)"
    ):
        check_shapes(STEP, tensors, megatron(prefix, model={"hiddenSize": 64}))
    with pytest.raises(SettingsError, match=r"needs output.weight of shape .* it is missing"):
        check_shapes(STEP, tensors, megatron(prefix, model={"tiedEmbeddings": False}))
