"""Resolves a launch into the model shape, the layout and the batch sizes of this rank."""

from __future__ import annotations

from dataclasses import dataclass

from megascale.data.ramp import BatchSizes
from megascale.engine.context import RankLaunch
from megascale.errors import InputError
from megascale.job import from_mapping
from megascale.job.megatron import Megatron
from megascale.job.schema import JobSpec
from megascale.model.layout import Layout
from megascale.model.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Plan:
    """A launch, resolved.

    Attributes:
        spec: the job's specification; megatron: its megatron runtime.
        shape: the model.
        layout: parallel sizes; the data-parallel size follows from the ranks of this launch.
    """

    spec: JobSpec
    megatron: Megatron
    shape: ModelShape
    layout: Layout

    @property
    def batches(self) -> BatchSizes:
        """Samples of each step."""
        data, ramp = self.megatron.data, self.megatron.data.batch_ramp
        if ramp is None:
            return BatchSizes.constant(data.global_batch)
        return BatchSizes(data.global_batch, ramp.start, ramp.increment, ramp.every_steps)

    def tokens_until(self, step: int) -> int:
        """Tokens that the job has used when `step` is complete."""
        return self.batches.before(step + 1) * self.megatron.data.sequence_length


def make_plan(launch: RankLaunch) -> Plan:
    """Read the launch's manifest.

    Raises:
        ManifestError: the manifest is not valid.
        InputError: the engine does not support what it asks for.
    """
    spec = from_mapping(launch.spec).spec
    megatron = spec.runtime.megatron
    if megatron is None:
        raise InputError("spec.runtime.megatron is missing: the engine runs only megatron jobs")
    parallel = megatron.parallelism
    if parallel.context > 1:
        raise InputError(
            f"spec.runtime.megatron.parallelism.context is {parallel.context}, expected 1: "
            "windowed attention is not split over ranks; use tensor with sequence: true for long sequences"
        )
    replica = parallel.tensor * parallel.pipeline
    if launch.world_size % replica:
        raise InputError(
            f"{launch.world_size} ranks were launched, expected a multiple of tensor {parallel.tensor} "
            f"x pipeline {parallel.pipeline} = {replica}"
        )
    shape = ModelShape.of(megatron.model)
    if shape.padded_vocab_size % parallel.tensor:
        raise InputError(
            f"spec.runtime.megatron.parallelism.tensor is {parallel.tensor}, expected a divisor of the "
            f"padded vocabulary {shape.padded_vocab_size}"
        )
    layout = Layout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=launch.world_size // replica,
        interleave=parallel.interleave,
        sequence=parallel.sequence,
    )
    return Plan(spec, megatron, shape, layout)
