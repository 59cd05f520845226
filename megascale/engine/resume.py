"""What a resume changes: where the data goes on, the learning rate, the model. Does not import torch.

Checkpoints store the settings that they were trained with. `megascale run` and `megascale job validate
--here` compare them with the manifest before anything is started, ranks when they start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from pydantic import ValidationError

from megascale.data.position import Position, go_on, stored_position
from megascale.data.ramp import BatchSizes
from megascale.errors import SettingsError
from megascale.job.megatron import Megatron, Model, Optimizer
from megascale.model.inventory import weights
from megascale.model.shape import ModelShape
from megascale.optim.schedules import scheduled_rate

_FIELD: Final = "spec.runtime.megatron"
_WITHOUT_EFFECT: Final = frozenset({"preset", "initStd", "attention"})
_BY_CHOICE: Final = frozenset({"window", "windowPattern", "withinDocuments", "rotaryBase", "expertsPerToken"})
"""Fields of the model that may change between steps, and change what it computes."""
_STATE: Final = {
    "lamb": "the two moments of Adam",
    "adamw": "the two moments of Adam",
    "lion": "one momentum",
}
_PROBES: Final = 256


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a job goes on from a checkpoint.

    Attributes:
        position: where it is in its data.
        notes: what a person should know, one sentence each.
    """

    position: Position
    notes: tuple[str, ...] = ()


def settings_of(megatron: Megatron, steps: int) -> dict[str, Any]:
    """The settings that a checkpoint stores, as JSON values, for `continuation` to compare."""
    return {
        "model": megatron.model.model_dump(mode="json", by_alias=True),
        "optimizer": megatron.optimizer.model_dump(mode="json", by_alias=True),
        "steps": steps,
        "batches": asdict(BatchSizes.of(megatron.data)),
    }


def continuation(step: int, stored: Mapping[str, Any], megatron: Megatron, steps: int) -> Continuation:
    """How a job goes on from a checkpoint or snapshot of `step`.

    Args:
        stored: its job state.
        steps: `spec.steps`.

    Raises:
        SettingsError: the manifest has another model, or an order of samples that cannot be continued; names
            the field. DataError: a dataset is missing.
    """
    notes: list[str] = []
    batches = BatchSizes.of(megatron.data)
    next_sample = batches.before(step + 1)
    # A snapshot in memory has no settings: it is of this manifest, or of one that went back to it.
    resized = stored.get("nextSample", next_sample) != next_sample
    if "settings" in stored:
        before = stored["settings"]
        resized = before["batches"] != asdict(batches)
        notes += _model_notes(step, before["model"], megatron.model)
        notes += _optimizer_notes(step, before["optimizer"], megatron.optimizer)
        notes += _rate_notes(step, before, megatron.optimizer, steps)
    wanted = Position.start(megatron.data, megatron.seed)
    position, unknown = stored_position({"nextSample": next_sample, **stored}, wanted)
    position, changes = go_on(position, wanted, restart_order=megatron.data.restart_order)
    if resized:
        at = f"{position.next_sample:,}"
        notes.append(
            f"the batch sizes changed: step {step + 1} begins with sample {at}, where step {step} stopped"
        )
    return Continuation(position, (*notes, *unknown, *changes))


def check_shapes(step: int, tensors: Mapping[str, tuple[int, ...]], megatron: Megatron) -> None:
    """Compare the weights of the manifest's model with those in the checkpoint of `step`.

    Args:
        tensors: name in the checkpoint -> shape.

    Raises:
        SettingsError: the checkpoint lacks one, or has it in another shape.
    """
    for weight in weights(ModelShape.of(megatron.model)):
        found = tensors.get(f"{weight.name}/master")
        if found is None or tuple(found) != weight.shape:
            has = "is missing" if found is None else f"has shape {tuple(found)}"
            raise SettingsError(
                f"{_FIELD}.model needs {weight.name} of shape {weight.shape}, but in the checkpoint of step"
                f" {step} it {has}; {_advice()}"
            )


def _advice() -> str:
    return "change it back, or start another job: another metadata.name, or --fresh"


def _model_notes(step: int, before: Mapping[str, Any], model: Model) -> Iterator[str]:
    now = model.model_dump(mode="json", by_alias=True)
    for name, value in now.items():
        if name not in before or before[name] == value or name in _WITHOUT_EFFECT:
            continue
        text = (
            f"{_FIELD}.model.{name} is {value}, the checkpoint of step {step} was trained with {before[name]}"
        )
        padded = ModelShape.of(model).padded_vocab_size
        if name == "vocabSize" and ModelShape.padded(int(before[name])) == padded:
            yield f"{text}; both take the same {padded} rows"
        elif name in _BY_CHOICE:
            yield f"{text}; the model computes something else from step {step + 1} on"
        else:
            raise SettingsError(f"{text}; {_advice()}")


def _optimizer_notes(step: int, before: Mapping[str, Any], optimizer: Optimizer) -> Iterator[str]:
    was = str(before["name"])
    if was == optimizer.name:
        return
    text = (
        f"{_FIELD}.optimizer.name is {optimizer.name}, the checkpoint of step {step} was trained with {was}"
    )
    if _STATE.get(was) != _STATE[optimizer.name]:
        raise SettingsError(
            f"{text}, whose state is {_STATE.get(was, 'unknown')}, not {_STATE[optimizer.name]}; {_advice()}"
        )
    yield f"{text}; it goes on with the same moments"


def _rate_notes(step: int, before: Mapping[str, Any], optimizer: Optimizer, steps: int) -> Iterator[str]:
    """A warning if a remaining step gets another learning rate than it would have got."""
    old_steps = int(before["steps"])
    try:
        old = Optimizer.model_validate(before["optimizer"])
    except ValidationError:  # of a version with other fields
        yield f"the learning rates that the checkpoint of step {step} was to have cannot be compared"
        return
    last = min(old_steps, steps)
    probes = {step + 1, *(step + 1 + (last - step - 1) * at // _PROBES for at in range(_PROBES + 1))}
    after = range(step + 1, step + 2) if last <= step else sorted(probes)
    changed = next((s for s in after if _differ(s, (old, old_steps), (optimizer, steps))), None)
    if changed is None:
        return
    rates = [scheduled_rate(changed, *curve) for curve in ((old, old_steps), (optimizer, steps))]
    text = (
        f"the learning rate of step {changed} is {rates[1]:.3g}; with the settings of the checkpoint of step"
        f" {step} it would be {rates[0]:.3g}"
    )
    follows = optimizer.schedule.decay_steps is None and old.schedule.decay_steps is None
    if follows and steps != old_steps and optimizer.schedule.name != "constant":
        text += (
            f": spec.steps was {old_steps}, is {steps}, and the decay ends with it; set"
            f" {_FIELD}.optimizer.schedule.decaySteps to {old_steps} to keep the curve"
        )
    yield text


def _differ(step: int, one: tuple[Optimizer, int], other: tuple[Optimizer, int]) -> bool:
    rates = scheduled_rate(step, *one), scheduled_rate(step, *other)
    return abs(rates[0] - rates[1]) > 1e-6 * max(rates)
