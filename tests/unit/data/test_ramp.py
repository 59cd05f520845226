from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from megascale.data.ramp import BatchSizes


@given(
    start=st.integers(1, 20),
    increment=st.integers(1, 8),
    levels=st.integers(0, 5),
    every_steps=st.integers(1, 7),
    steps=st.integers(1, 60),
)
def test_steps_use_consecutive_samples(
    start: int, increment: int, levels: int, every_steps: int, steps: int
) -> None:
    sizes = BatchSizes(start + levels * increment, start, increment, every_steps)
    used = 0
    for step in range(1, steps + 1):
        assert sizes.before(step) == used
        assert sizes.at(step) == min(sizes.full, start + (step - 1) // every_steps * increment)
        assert {sizes.step_of(sample) for sample in range(used, used + sizes.at(step))} == {step}
        used += sizes.at(step)


@given(start=st.integers(1, 9), levels=st.integers(0, 3), step=st.integers(0, 40), used=st.integers(0, 500))
def test_changed_sizes_go_on_where_the_samples_stopped(start: int, levels: int, step: int, used: int) -> None:
    sizes = BatchSizes(start + 2 * levels, start, 2 if levels else 0, 3).going_on(step, used)
    for later in range(step + 1, step + 20):
        assert sizes.before(later) == used
        assert {sizes.step_of(sample) for sample in range(used, used + sizes.at(later))} == {later}
        used += sizes.at(later)
    assert sizes.going_on(step + 19, used) == sizes


def test_without_a_ramp_all_steps_are_alike() -> None:
    sizes = BatchSizes.constant(6)
    assert [sizes.at(step) for step in (1, 2, 99)] == [6, 6, 6]
    assert (sizes.before(1), sizes.before(11), sizes.step_of(59), sizes.step_of(60)) == (0, 60, 10, 11)
