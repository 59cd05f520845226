"""Checks across fields of a job: size, model and layout, batch sizes, overrides, injected faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from megascale.job.base import Problem
from megascale.job.data import BYTE_TOKENIZER, BYTE_VOCAB_SIZE, Data
from megascale.job.faults import Fault
from megascale.job.log_rules import LogRule, named_rule_problem
from megascale.job.megatron import VOCAB_MULTIPLE, Megatron, Model, Parallelism, Schedule
from megascale.job.recovery import Override

_MEGATRON: Final = ("runtime", "megatron")


@dataclass(frozen=True, slots=True)
class Size:
    """How many nodes and ranks a job has: `nodes` at full strength, at least `min_nodes` after losses."""

    nodes: int
    min_nodes: int
    ranks_per_node: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def __str__(self) -> str:
        return f"nodes {self.nodes} x ranksPerNode {self.ranks_per_node} = {self.ranks} ranks"


def node_counts(size: Size, megatron: Megatron | None) -> tuple[int, ...]:
    """Node counts from nodes down to minNodes that the layout can run on."""
    counts = range(size.nodes, size.min_nodes - 1, -1)
    return tuple(n for n in counts if megatron is None or _fits(megatron, n * size.ranks_per_node))


def size_problems(size: Size) -> list[Problem]:
    """minNodes against nodes."""
    if size.min_nodes <= size.nodes:
        return []
    message = f"{size.min_nodes} is more than nodes {size.nodes}"
    return [Problem(("minNodes",), message, "minNodes is what the job may shrink to")]


def training_problems(size: Size, steps: int, megatron: Megatron) -> list[Problem]:
    """The model, its layout and its data against each other and against the size of the job."""
    full = _world_problems(size, megatron)
    inside = [
        *_model_problems(megatron.model),
        *_parallelism_problems(megatron.parallelism),
        *_layout_problems(megatron),
        *_data_problems(megatron),
    ]
    problems = [*full, *(Problem((*_MEGATRON, *p.path), p.message, p.hint) for p in inside)]
    if not full:
        problems += _shrinking_problems(size, megatron)
    return problems + _schedule_problems(megatron.optimizer.schedule, steps)


def _schedule_problems(schedule: Schedule, steps: int) -> list[Problem]:
    """The warm-up against the steps of the job and of the decay."""
    path, warm_up = (*_MEGATRON, "optimizer", "schedule", "warmupSteps"), schedule.warmup_steps
    if warm_up > steps:
        message = f"{warm_up} is more than spec.steps {steps}"
        return [Problem(path, message, "the warm-up would not end within the job")]
    if schedule.decay_steps is not None and warm_up > schedule.decay_steps:
        message = f"{warm_up} is more than decaySteps {schedule.decay_steps}"
        return [Problem(path, message, "the warm-up would not end before the decay does")]
    return []


def _shrinking_problems(size: Size, megatron: Megatron) -> list[Problem]:
    """The layout on minNodes nodes."""
    if size.min_nodes >= size.nodes or _fits(megatron, size.min_nodes * size.ranks_per_node):
        return []
    fitting = ", ".join(map(str, node_counts(size, megatron)))
    message = f"layout and globalBatch do not fit {size.min_nodes} x ranksPerNode {size.ranks_per_node} ranks"
    return [Problem(("minNodes",), message, f"from here up to nodes these fit: {fitting}")]


def _world_problems(size: Size, megatron: Megatron) -> list[Problem]:
    """The layout and the batch on all nodes."""
    layout, data, world, ranks = megatron.parallelism, megatron.data, size.ranks, str(size)
    replica = layout.ranks_per_replica
    if world % replica:
        sizes = f"tensor {layout.tensor} x pipeline {layout.pipeline} x context {layout.context} = {replica}"
        message = (
            f"{ranks}, but one copy of the model takes {sizes} and {world} is not a multiple of {replica}"
        )
        hint = f"make nodes x ranksPerNode a multiple of {replica}, or lower tensor, pipeline or context"
        return [Problem((*_MEGATRON, "parallelism"), message, hint)]
    data_parallel = world // replica
    per_wave = data.micro_batch * data_parallel
    if data.global_batch % per_wave:
        wave = f"microBatch {data.micro_batch} x data-parallel size {data_parallel} = {per_wave}"
        below = data.global_batch // per_wave * per_wave
        nearest = f"{below} or {below + per_wave}" if below else f"{per_wave}"
        message = (
            f"{data.global_batch} is not a multiple of {wave} ({ranks}, {replica} per copy of the model)"
        )
        return [Problem((*_MEGATRON, "data", "globalBatch"), message, f"use {nearest}")]
    micro_batches = data.global_batch // per_wave
    if layout.interleave > 1 and micro_batches % layout.pipeline:
        message = (
            f"{data.global_batch} gives {micro_batches} micro-batches per step and rank;"
            f" with interleave {layout.interleave} it must be a multiple of pipeline {layout.pipeline}"
        )
        hint = f"use a multiple of {per_wave * layout.pipeline}"
        return [Problem((*_MEGATRON, "data", "globalBatch"), message, hint)]
    return _ramp_wave_problems(data, per_wave * _pipelined(layout), ranks)


def _pipelined(layout: Parallelism) -> int:
    """What the number of micro-batches of a step is a multiple of."""
    return layout.pipeline if layout.interleave > 1 else 1


def _ramp_wave_problems(data: Data, unit: int, ranks: str) -> list[Problem]:
    """The ramp's increment against what divides every batch."""
    ramp = data.batch_ramp
    if ramp is None or ramp.increment % unit == 0:
        return []
    message = f"{ramp.increment} is not a multiple of {unit}, which every batch of {ranks} has to be"
    return [Problem((*_MEGATRON, "data", "batchRamp", "increment"), message, f"use a multiple of {unit}")]


def _fits(megatron: Megatron, world: int) -> bool:
    """Whether layout and batch divide evenly over `world` ranks."""
    layout, data = megatron.parallelism, megatron.data
    if world % layout.ranks_per_replica:
        return False
    per_wave = data.micro_batch * (world // layout.ranks_per_replica)
    if data.global_batch % per_wave:
        return False
    unit = per_wave * _pipelined(layout)
    return not data.global_batch % unit and (data.batch_ramp is None or not data.batch_ramp.increment % unit)


def override_problems(overrides: Sequence[Override], rules: Sequence[LogRule]) -> list[Problem]:
    """Overrides for rules that the job does not have."""
    return [
        Problem(("recovery", "overrides", index, "match", "rule"), *problem)
        for index, override in enumerate(overrides)
        if override.match.rule is not None
        and (problem := named_rule_problem(override.match.rule, rules)) is not None
    ]


def fault_problems(faults: list[Fault], *, ranks: int, steps: int, every_steps: int) -> list[Problem]:
    """Faults that could never happen in a job of so many ranks and steps that saves so often."""
    return [
        Problem(("faults", index, *problem.path), problem.message, problem.hint)
        for index, fault in enumerate(faults)
        for problem in (*_rank_problems(fault, ranks), *_step_problems(fault, steps, every_steps))
    ]


def _rank_problems(fault: Fault, ranks: int) -> list[Problem]:
    if fault.rank is None or fault.rank < ranks:
        return []
    message = f"{fault.rank} does not exist: nodes x ranksPerNode are {ranks} ranks"
    return [Problem(("rank",), message, f"ranks are numbered 0 to {ranks - 1}")]


def _step_problems(fault: Fault, steps: int, every: int) -> list[Problem]:
    if fault.step > steps:
        message = f"{fault.step} is never reached: the job ends after step {steps}"
        return [Problem(("step",), message, f"use 1 to {steps}")]
    if fault.point == "step" or fault.step % every == 0 or fault.step == steps:
        return []
    message = f"no checkpoint is saved in step {fault.step}, so point {fault.point} is never reached"
    hint = f"checkpoint.everySteps {every} saves in steps {every}, {2 * every}... and in step {steps}"
    return [Problem(("step",), message, hint)]


def _model_problems(model: Model) -> list[Problem]:
    hidden, heads = model.hidden_size, model.attention_heads
    problems = []
    if hidden % heads:
        message = f"{hidden} is not a multiple of attentionHeads {heads}"
        problems.append(
            Problem(("model", "hiddenSize"), message, "every head gets the same share of hiddenSize")
        )
    elif hidden // heads % 2:
        message = f"{hidden} gives each of the {heads} heads an odd width of {hidden // heads}"
        hint = "rotary positions turn pairs of values: make hiddenSize / attentionHeads even"
        problems.append(Problem(("model", "hiddenSize"), message, hint))
    if heads % model.kv_heads:
        message = f"{model.kv_heads} does not divide attentionHeads {heads}"
        problems.append(
            Problem(("model", "kvHeads"), message, "each key-value head serves as many query heads")
        )
    return [*problems, *_expert_problems(model)]


def _expert_problems(model: Model) -> list[Problem]:
    if model.experts is None:
        return []
    problems = []
    if model.experts_per_token > model.experts:
        message = f"{model.experts_per_token} is more than experts {model.experts}"
        problems.append(Problem(("model", "expertsPerToken"), message, f"use 1 to {model.experts}"))
    return problems


def _parallelism_problems(layout: Parallelism) -> list[Problem]:
    problems = []
    if layout.sequence and layout.tensor == 1:
        message = "sequence parallelism splits over the tensor ranks, but tensor is 1"
        hint = "set tensor to 2 or more, or sequence to false"
        problems.append(Problem(("parallelism", "sequence"), message, hint))
    if layout.context > 1:
        message = f"context is {layout.context}, expected 1: windowed attention is not split over ranks"
        hint = "use tensor with sequence: true for long sequences"
        problems.append(Problem(("parallelism", "context"), message, hint))
    if layout.interleave > 1 and layout.pipeline == 1:
        message = f"{layout.interleave} chunks per stage need a pipeline, but pipeline is 1"
        hint = "set pipeline to 2 or more, or interleave to 1"
        problems.append(Problem(("parallelism", "interleave"), message, hint))
    return problems


def _layout_problems(megatron: Megatron) -> list[Problem]:
    """The model against its layout."""
    model, layout = megatron.model, megatron.parallelism
    tensor, stages = layout.tensor, layout.pipeline * layout.interleave
    pipeline = f"pipeline {layout.pipeline} x interleave {layout.interleave} = {stages}"
    routed = []
    if model.experts is not None and tensor > 1 and not layout.sequence:
        message = f"experts over tensor {tensor} ranks need sequence parallelism"
        routed = [Problem(("parallelism", "sequence"), message, "set sequence to true, or tensor to 1")]
    same_layers = "every piece of the pipeline gets the same number of layers"
    same_share = "every tensor rank gets the same share"
    grouped = model.kv_heads if model.kv_heads != model.attention_heads else 0
    return [
        *routed,
        *_multiple(("model", "kvHeads"), grouped, tensor, f"tensor {tensor}", same_share),
        *_multiple(("model", "numLayers"), model.num_layers, stages, pipeline, same_layers),
        *_multiple(
            ("model", "attentionHeads"), model.attention_heads, tensor, f"tensor {tensor}", same_share
        ),
        *_multiple(("model", "ffnHiddenSize"), model.ffn_hidden_size, tensor, f"tensor {tensor}", same_share),
        *_vocabulary_problems(model, tensor),
    ]


def _vocabulary_problems(model: Model, tensor: int) -> list[Problem]:
    rows = -(-model.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if rows % tensor == 0:
        return []
    message = (
        f"tensor is {tensor}, but vocabSize {model.vocab_size}, padded to {rows} rows, is not a multiple"
    )
    hint = f"make tensor a divisor of {rows}"
    return [Problem(("parallelism", "tensor"), message, hint)]


def _data_problems(megatron: Megatron) -> list[Problem]:
    """The data against model and layout."""
    model, layout, data = megatron.model, megatron.parallelism, megatron.data
    problems = []
    if layout.sequence:
        path, hint = (
            ("data", "sequenceLength"),
            "sequence parallelism splits the sequence over the tensor ranks",
        )
        problems += _multiple(path, data.sequence_length, layout.tensor, f"tensor {layout.tensor}", hint)
    if (
        data.batch_ramp is not None
        and (data.global_batch - data.batch_ramp.start) % data.batch_ramp.increment
    ):
        message = f"{data.batch_ramp.start} does not reach globalBatch {data.global_batch}"
        hint = f"globalBatch - start must be a multiple of increment {data.batch_ramp.increment}"
        problems.append(Problem(("data", "batchRamp", "start"), message, hint))
    elif data.batch_ramp is not None and data.batch_ramp.start > data.global_batch:
        message = f"{data.batch_ramp.start} is more than globalBatch {data.global_batch}"
        problems.append(Problem(("data", "batchRamp", "start"), message, "the batch grows, it never shrinks"))
    if data.prepare_from and data.tokenizer == BYTE_TOKENIZER and model.vocab_size < BYTE_VOCAB_SIZE:
        message = (
            f"{model.vocab_size} is less than the {BYTE_VOCAB_SIZE} token ids that data.prepareFrom makes"
        )
        problems.append(Problem(("model", "vocabSize"), message, f"use {BYTE_VOCAB_SIZE} or more"))
    return problems


def _multiple(path: tuple[str, ...], value: int, of: int, why: str, hint: str) -> list[Problem]:
    """A problem at `path` unless `value` is a multiple of `of`."""
    return [] if value % of == 0 else [Problem(path, f"{value} is not a multiple of {why}", hint)]
