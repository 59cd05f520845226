"""The engine's state as checkpoint pieces, whose names and boxes do not depend on the parallel layout.

megatron-core's distributed optimizer gives each data-parallel rank a flat range of every parameter buffer.
The part of a parameter within that range is a flat range of the parameter's local shape, which in turn is a
box of the whole model's tensor. The fp32 masters and the optimizer's moments are saved; the model's
parameters are computed from the masters (`EngineState.publish_masters`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from torch import Tensor

from megascale.checkpoint import Piece, flat_range_boxes
from megascale.engine.state import EngineState
from megascale.model.parameters import ParameterBox


def pieces(state: EngineState) -> list[Piece]:
    """Every box of optimizer state that this rank holds; the tensors are views of live storage."""
    return list(_pieces(state, owned_only=False))


def owned_pieces(state: EngineState) -> list[Piece]:
    """The boxes that this rank saves; over all ranks they cover every tensor exactly once.

    Tensor rank 0 saves parameters that tensor parallelism does not split, and the first pipeline stage saves
    a tied embedding.
    """
    return list(_pieces(state, owned_only=True))


def _pieces(state: EngineState, *, owned_only: bool) -> Iterator[Piece]:
    boxes = {box.parameter: box for box in state.boxes}
    is_first_of_tensor = state.groups.coordinates.tensor == 0
    for parameter, master, start, end in state.masters():
        box = boxes[parameter]
        owned = not box.copy and (box.sharded or is_first_of_tensor)
        if owned or not owned_only:
            yield from _pieces_of(box, "master", master, start, end)
            for moment in state.inner.moments:
                yield from _pieces_of(box, moment, state.inner.state[master][moment], start, end)


def _pieces_of(box: ParameterBox, kind: str, values: Tensor, start: int, end: int) -> Iterator[Piece]:
    """Pieces of `values`, the elements [start, end) of the parameter in row-major order of its local box."""
    flat = values.detach().view(-1)
    at = 0
    for offset, shape in flat_range_boxes(box.shape, start, end):
        count = prod(shape)
        yield Piece(
            name=f"{box.name}/{kind}",
            global_shape=box.global_shape,
            offset=tuple(base + inner for base, inner in zip(box.offset, offset, strict=True)),
            shape=shape,
            tensor=flat[at : at + count],
        )
        at += count
