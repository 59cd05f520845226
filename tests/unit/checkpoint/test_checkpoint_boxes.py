from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megascale.checkpoint.boxes import Box, flat_range_boxes, intersect, slices_within, split

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(shapes)
    start = draw(st.integers(0, prod(shape)))
    return shape, start, draw(st.integers(start, prod(shape)))


@st.composite
def box_pairs(draw: st.DrawFn) -> tuple[tuple[int, ...], Box, Box]:
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))

    def box() -> Box:
        starts = tuple(draw(st.integers(0, size - 1)) for size in shape)
        return starts, tuple(draw(st.integers(1, size - at)) for at, size in zip(starts, shape, strict=True))

    return shape, box(), box()


def as_slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(at, at + size) for at, size in zip(*box, strict=True))


@given(ranges())
def test_boxes_list_the_range_in_order(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, end = case
    whole = np.arange(prod(shape)).reshape(shape)
    boxes = flat_range_boxes(shape, start, end)
    listed = [value for box in boxes for value in whole[as_slices(box)].reshape(-1).tolist()]
    assert listed == list(range(start, end))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(box_pairs())
def test_intersection_is_what_both_boxes_cover(case: tuple[tuple[int, ...], Box, Box]) -> None:
    shape, a, b = case
    whole = np.arange(prod(shape)).reshape(shape)
    common = intersect(a, b)
    expected = np.intersect1d(whole[as_slices(a)], whole[as_slices(b)])
    if common is None:
        assert expected.size == 0
        return
    part = whole[as_slices(common)]
    assert part.reshape(-1).tolist() == expected.tolist()
    assert np.array_equal(whole[as_slices(a)][slices_within(common, a)], part)


@given(shapes, st.integers(1, 40))
def test_split_keeps_order_and_bound(shape: tuple[int, ...], most: int) -> None:
    whole = np.arange(prod(shape)).reshape(shape)
    parts = split(((0,) * len(shape), shape), most)
    listed = [value for part in parts for value in whole[as_slices(part)].reshape(-1).tolist()]
    assert listed == list(range(prod(shape)))
    assert all(prod(part[1]) <= most for part in parts)


def test_a_slice_across_rows_is_three_boxes() -> None:
    assert flat_range_boxes((4, 3), 2, 10) == [((0, 2), (1, 1)), ((1, 0), (2, 3)), ((3, 0), (1, 1))]


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (0, 13)])
def test_a_range_outside_the_tensor_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="not within"):
        flat_range_boxes((4, 3), start, end)
