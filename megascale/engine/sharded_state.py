"""The engine's state as checkpoint pieces: canonical names and boxes, free of the parallel layout.

megatron-core's distributed optimizer gives each data-parallel rank a flat range of every parameter buffer;
the part of a parameter that falls into it is a flat range of that parameter's local shape, which is a box of
the whole model's tensor. Saved are the fp32 masters and the optimizer's moments; the model's own parameters
follow from the masters (`EngineState.publish_masters`).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from torch import Tensor

from megascale.checkpoint import Piece, flat_range_boxes
from megascale.engine.state import EngineState
from megascale.model.parameters import ParameterBox


def pieces(state: EngineState) -> list[Piece]:
    """Every box of optimizer state this rank holds, to be restored; the tensors are views of live storage."""
    return list(_pieces(state, owned_only=False))


def owned_pieces(state: EngineState) -> list[Piece]:
    """The boxes this rank saves: over all ranks every tensor exactly once.

    Of what several ranks hold, one saves: a parameter that is not cut by tensor parallelism belongs to tensor
    rank 0, a tied embedding to the first pipeline stage.
    """
    return list(_pieces(state, owned_only=True))


def _pieces(state: EngineState, *, owned_only: bool) -> Iterator[Piece]:
    boxes = {box.parameter: box for box in state.boxes}
    is_first_of_tensor = state.groups.place.tensor == 0
    for parameter, master, start, end in state.masters():
        box = boxes[parameter]
        owned = not box.copy and (box.sharded or is_first_of_tensor)
        if owned or not owned_only:
            yield from _pieces_of(box, "master", master, start, end)
            for moment in state.inner.moments:
                yield from _pieces_of(box, moment, state.inner.state[master][moment], start, end)


def _pieces_of(box: ParameterBox, kind: str, values: Tensor, start: int, end: int) -> Iterator[Piece]:
    """`values` are the elements [start, end) of the parameter, in the order of its local box."""
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
