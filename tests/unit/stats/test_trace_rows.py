"""Rows become arrays, or an error that names the row."""

from __future__ import annotations

import numpy as np
import pytest

from megascale.core.stats.trace import TraceBuilder
from megascale.errors import DataError, InputError


def add(builder: TraceBuilder, step: int, rank: int, seconds: float, **more: object) -> None:
    fields = {"node": f"n{rank}", "stage": 0, "segment": "forward", "where": "t.csv:2", **more}
    builder.add(step, rank, seconds=seconds, **fields)  # type: ignore[arg-type]


def test_rows_in_any_order_are_summed_and_holes_are_nan() -> None:
    builder = TraceBuilder()
    add(builder, 7, 3, 1.0)
    add(builder, 5, 1, 2.0)
    add(builder, 7, 3, 0.5)
    trace = builder.build()
    assert trace.steps.tolist() == [5, 7]
    assert trace.topology.ranks == (1, 3)
    np.testing.assert_array_equal(trace.seconds["forward"], [[2.0, np.nan], [np.nan, 1.5]])


@pytest.mark.parametrize("seconds", [-0.1, float("nan"), float("inf")])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(DataError, match=r"t\.csv:2: seconds is"):
        add(TraceBuilder(), 1, 0, seconds)


def test_unknown_segment_is_refused() -> None:
    with pytest.raises(InputError, match="segment 'fwd' is not one of forward"):
        add(TraceBuilder(), 1, 0, 1.0, segment="fwd")


def test_a_rank_has_one_node_and_one_stage() -> None:
    builder = TraceBuilder()
    add(builder, 1, 0, 1.0)
    with pytest.raises(DataError, match="rank 0 is on node 'other'"):
        add(builder, 2, 0, 1.0, node="other")
    with pytest.raises(DataError, match="rank 0 is in stage 3"):
        add(builder, 2, 0, 1.0, stage=3)


def test_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no timings"):
        TraceBuilder().build()
