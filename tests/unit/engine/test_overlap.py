"""What the engine overlaps, and why not."""

from __future__ import annotations

from typing import Any

import pytest

from megascale.engine.overlap import decide
from megascale.job.megatron import Overlap
from megascale.model.layout import Layout

SPLIT: dict[str, Any] = {"tensor": 2, "pipeline": 1, "data": 2, "sequence": True}


def tensor(layout: dict[str, Any], **options: Any) -> str:
    asked = Overlap(tensor=options.pop("asked", True))
    overlap = decide(asked, Layout(**SPLIT | layout), **options)
    feature = overlap.features[-1]
    assert overlap.tensor == feature.on
    return str(feature)


def test_products_overlap_where_tensor_ranks_read_each_others_memory() -> None:
    assert tensor({}) == "overlap tensor: on (supported)"


@pytest.mark.parametrize(
    ("layout", "options", "reason"),
    [
        ({"tensor": 1, "sequence": False}, {}, "one tensor-parallel rank has nothing to send"),
        ({"sequence": False}, {}, "needs sequence parallelism"),
        ({}, {"block": "serial"}, "needs the parallel block"),
        ({}, {"asked": False}, "switched off"),
        ({}, {"obstacle": "needs GPUs, this rank has cpu"}, "needs GPUs, this rank has cpu"),
    ],
)
def test_the_log_says_why_products_do_not_overlap(
    layout: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    assert tensor(layout, **options).startswith(f"overlap tensor: off ({reason}")
