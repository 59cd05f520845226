from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megascale.model.layout import Layout, RankCoordinates

SIZES = st.integers(1, 5)


@given(tensor=SIZES, pipeline=SIZES, data=SIZES)
def test_every_rank_has_its_own_coordinates(tensor: int, pipeline: int, data: int) -> None:
    layout = Layout(tensor=tensor, pipeline=pipeline, data=data)
    for rank in range(layout.world_size):
        own = RankCoordinates.of(rank, layout)
        assert layout.rank_of(own.tensor, own.data, own.pipeline) == rank


def test_tensor_ranks_are_neighbours_and_a_stage_is_one_block() -> None:
    layout = Layout(tensor=2, pipeline=2, data=2)
    found = [RankCoordinates.of(rank, layout) for rank in range(8)]
    assert [own.tensor for own in found] == [0, 1] * 4
    assert [own.data for own in found] == [0, 0, 1, 1] * 2
    assert [own.pipeline for own in found] == [0] * 4 + [1] * 4
