"""The parallel layout of a job, and the coordinates of a rank in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of the parallel dimensions.

    Ranks are ordered tensor, data, pipeline from the inside out, so tensor-parallel ranks are neighbours and
    a data-parallel group stays within one pipeline stage (MegaScale 3.2 lays out data before pipeline).

    Attributes:
        tensor, pipeline, data: ranks along each dimension.
        interleave: model chunks per pipeline rank.
        sequence: whether activations between blocks are split along the sequence.
    """

    tensor: int
    pipeline: int
    data: int
    interleave: int = 1
    sequence: bool = False

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    def rank_of(self, tensor: int, data: int, pipeline: int) -> int:
        return (pipeline * self.data + data) * self.tensor + tensor


@dataclass(frozen=True, slots=True)
class RankCoordinates:
    """Index of a rank along each dimension of its layout."""

    tensor: int
    data: int
    pipeline: int

    @classmethod
    def of(cls, rank: int, layout: Layout) -> RankCoordinates:
        return cls(
            tensor=rank % layout.tensor,
            data=rank // layout.tensor % layout.data,
            pipeline=rank // (layout.tensor * layout.data),
        )
