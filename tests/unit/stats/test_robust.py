"""Windows and runs against plain restatements."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megascale.core.stats.robust import change_point, first_run, peer_reference, window_medians
from megascale.core.stats.trace import Topology


@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5), st.integers(1, 6))
def test_first_run_agrees_with_brute_force(flags: list[bool], need: int, among: int) -> None:
    need = min(need, among)
    run = first_run(np.asarray(flags, dtype=np.int64), need, among)
    length = min(among, len(flags))
    exists = (
        any(sum(flags[i : i + length]) >= need for i in range(len(flags) - length + 1)) and len(flags) >= need
    )
    assert (run is not None) == exists
    if run is not None:
        start, end = run
        assert flags[start]
        assert flags[end]


@given(st.integers(12, 80), st.integers(0, 10_000))
def test_change_point_finds_a_clear_step(at: int, seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0.0, 0.01, 100)
    noise[at:] += 0.2
    found, score = change_point(noise)
    assert abs(found - at) <= 1
    assert score > 8


def test_flat_series_has_no_step() -> None:
    assert change_point(np.ones(50))[1] < 1.0
    assert change_point(np.ones(3)) == (0, 0.0)


def test_reference_leaves_the_own_node_out() -> None:
    topology = Topology((0, 1, 2, 3, 4), ("a", "a", "b", "b", "c"), (0, 0, 0, 0, 1))
    reference = peer_reference(np.asarray([[1.0, 1.0, 3.0, 5.0, 9.0]]), topology)
    np.testing.assert_array_equal(reference, [[4.0, 4.0, 1.0, 1.0, np.nan]])


def test_windows_cut_the_front() -> None:
    medians = window_medians(np.arange(7.0)[:, None], 3)
    np.testing.assert_array_equal(medians[:, 0], [2.0, 5.0])
