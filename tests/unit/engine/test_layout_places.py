from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megascale.model.layout import Layout, Place

SIZES = st.integers(1, 5)


@given(tensor=SIZES, pipeline=SIZES, data=SIZES)
def test_every_rank_has_its_own_place(tensor: int, pipeline: int, data: int) -> None:
    layout = Layout(tensor=tensor, pipeline=pipeline, data=data)
    for rank in range(layout.world_size):
        place = Place.of(rank, layout)
        assert layout.rank_of(place.tensor, place.data, place.pipeline) == rank


def test_tensor_ranks_are_neighbours_and_a_stage_is_one_block() -> None:
    layout = Layout(tensor=2, pipeline=2, data=2)
    places = [Place.of(rank, layout) for rank in range(8)]
    assert [place.tensor for place in places] == [0, 1] * 4
    assert [place.data for place in places] == [0, 0, 1, 1] * 2
    assert [place.pipeline for place in places] == [0] * 4 + [1] * 4
