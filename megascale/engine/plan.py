"""Resolves a launch into the model shape, the layout and the batch sizes of this rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megascale.data.position import Position
from megascale.data.ramp import BatchSizes
from megascale.engine.context import RankLaunch
from megascale.errors import SettingsError
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
        batches: samples of each step.
        started: where the job is in its data at the start of this attempt; None = not known yet.
    """

    spec: JobSpec
    megatron: Megatron
    shape: ModelShape
    layout: Layout
    batches: BatchSizes
    started: Position | None = None

    def going_on(self, step: int, position: Position) -> Plan:
        """This plan for a job that has completed `step` steps and reads on from `position`."""
        return replace(self, batches=self.batches.going_on(step, position.next_sample), started=position)

    @property
    def position(self) -> Position:
        """Where the job is in its data at the start of this attempt; `going_on` sets it."""
        assert self.started is not None, "going_on comes first"
        return self.started

    def position_after(self, step: int) -> Position:
        """Where the job is in its data when `step` is complete."""
        return self.position.at(self.batches.before(step + 1))

    def tokens_until(self, step: int) -> int:
        """Tokens that the job has used when `step` is complete."""
        return self.position_after(step).tokens


def make_plan(launch: RankLaunch) -> Plan:
    """Read the launch's manifest.

    Raises:
        ManifestError: the manifest is not valid.
        SettingsError: the engine does not support what it asks for.
    """
    spec = from_mapping(launch.spec).spec
    megatron = spec.runtime.megatron
    if megatron is None:
        raise SettingsError("spec.runtime.megatron is missing: the engine runs only megatron jobs")
    parallel = megatron.parallelism
    if parallel.context > 1:
        raise SettingsError(
            f"spec.runtime.megatron.parallelism.context is {parallel.context}, expected 1: "
            "windowed attention is not split over ranks; use tensor with sequence: true for long sequences"
        )
    replica = parallel.tensor * parallel.pipeline
    if launch.world_size % replica:
        raise SettingsError(
            f"{launch.world_size} ranks were launched, expected a multiple of tensor {parallel.tensor} "
            f"x pipeline {parallel.pipeline} = {replica}"
        )
    shape = ModelShape.of(megatron.model)
    layout = Layout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        data=launch.world_size // replica,
        interleave=parallel.interleave,
        sequence=parallel.sequence,
    )
    return Plan(spec, megatron, shape, layout, BatchSizes.of(megatron.data))
