"""Pieces: the parts of global tensors that a rank holds."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the store and its command line work without torch
    import torch

    from megascale.checkpoint.boxes import Box


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a global tensor that this rank holds.

    Attributes:
        name: canonical name, "<parameter>/<state>" ("layers.3.attention.qkv.weight/master"); layers are
            numbered over the whole model and not within a pipeline stage.
        global_shape: shape of the whole tensor.
        offset, shape: the box.
        tensor: contiguous 1-D view of the box's values in row-major order. It is live storage, which a save
            reads and a restore overwrites.
    """

    name: str
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    tensor: torch.Tensor

    def __post_init__(self) -> None:
        if not len(self.global_shape) == len(self.offset) == len(self.shape):
            raise ValueError(f"{self.name}: offset and shape need {len(self.global_shape)} entries")
        for size, at, whole in zip(self.shape, self.offset, self.global_shape, strict=True):
            if at < 0 or size < 1 or at + size > whole:
                raise ValueError(
                    f"{self.name}: box {self.offset}+{self.shape} is outside {self.global_shape}"
                )
        if self.tensor.ndim != 1 or not self.tensor.is_contiguous():
            raise ValueError(f"{self.name}: the tensor of a piece is a contiguous 1-D view")
        if self.tensor.numel() != prod(self.shape):
            raise ValueError(f"{self.name}: {self.tensor.numel()} values for a box of shape {self.shape}")

    @property
    def box(self) -> Box:
        return (self.offset, self.shape)

    @property
    def dtype_name(self) -> str:
        """ "float32", "bfloat16", ..."""
        return str(self.tensor.dtype).removeprefix("torch.")
