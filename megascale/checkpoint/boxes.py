"""Boxes: axis-aligned blocks of a global tensor, the unit in which checkpoints are stored.

A rank of a sharded optimizer owns a flat range of a parameter, and a rank of another layout owns another
range. Both consist of a few boxes, and what they have in common is the intersections of these.
"""

from __future__ import annotations

from math import prod
from typing import TypeAlias

Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""(offset, shape), both with one entry per dimension of the global tensor."""


def flat_range_boxes(shape: tuple[int, ...], start: int, end: int) -> list[Box]:
    """The elements [start, end) of a row-major tensor as boxes, in flat order.

    Each box is a contiguous run of the range and the boxes follow each other without a gap, so a flat
    buffer of the range is the concatenation of the boxes' row-major values. There are at most
    2 * ndim - 1 of them (1 for a scalar), none for an empty range.

    Raises:
        ValueError: the range does not lie within the tensor.
    """
    if not 0 <= start <= end <= prod(shape):
        raise ValueError(f"range [{start}, {end}) is not within a tensor of shape {shape}")
    if start == end:
        return []
    if not shape:
        return [((), ())]
    row = prod(shape[1:])
    first_row, head = divmod(start, row)
    last_row, tail = divmod(end, row)
    if first_row == last_row:  # within one row
        return _in_row(first_row, shape, head, tail)
    boxes = []
    if head:
        boxes += _in_row(first_row, shape, head, row)
        first_row += 1
    if last_row > first_row:
        zeros = (0,) * (len(shape) - 1)
        boxes.append(((first_row, *zeros), (last_row - first_row, *shape[1:])))
    if tail:
        boxes += _in_row(last_row, shape, 0, tail)
    return boxes


def _in_row(index: int, shape: tuple[int, ...], start: int, end: int) -> list[Box]:
    inner = flat_range_boxes(shape[1:], start, end)
    return [((index, *offset), (1, *extent)) for offset, extent in inner]


def split(box: Box, most: int) -> list[Box]:
    """Split a box into boxes of at most `most` elements, in row-major order."""
    offset, shape = box
    if prod(shape) <= most:
        return [box]
    axis = next(index for index, size in enumerate(shape) if size > 1)
    rows = max(1, most // prod(shape[axis + 1 :]))
    parts: list[Box] = []
    for start in range(0, shape[axis], rows):
        size = min(rows, shape[axis] - start)
        part_offset = (*offset[:axis], offset[axis] + start, *offset[axis + 1 :])
        parts += split((part_offset, (*shape[:axis], size, *shape[axis + 1 :])), most)
    return parts


def intersect(a: Box, b: Box) -> Box | None:
    """The intersection of two boxes of one tensor; None if it is empty."""
    offset = tuple(max(x, y) for x, y in zip(a[0], b[0], strict=True))
    extent = tuple(
        min(ax + an, bx + bn) - lo for ax, an, bx, bn, lo in zip(a[0], a[1], b[0], b[1], offset, strict=True)
    )
    return (offset, extent) if all(size > 0 for size in extent) else None


def slices_within(part: Box, whole: Box) -> tuple[slice, ...]:
    """Index of `part` in an array of the values of `whole`."""
    return tuple(
        slice(at - base, at - base + size) for at, size, base in zip(part[0], part[1], whole[0], strict=True)
    )
