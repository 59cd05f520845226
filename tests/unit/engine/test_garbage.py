"""Garbage is collected after planned steps only."""

from __future__ import annotations

import gc
import weakref

from megascale.engine.garbage import EVERY_STEPS, PlannedCollection


class Knot:
    """Refers to itself: only the collector frees it."""

    def __init__(self) -> None:
        self.me = self


def knot() -> weakref.ref[Knot]:
    return weakref.ref(Knot())


def test_nothing_is_collected_between_the_planned_steps() -> None:
    with PlannedCollection(step=7) as garbage:
        tied = knot()
        kept = [Knot() for _ in range(5000)]  # far more than what triggers a collection otherwise
        for step in range(8, 7 + EVERY_STEPS):
            garbage.after(step, saved=False)
        assert tied() is not None
        garbage.after(7 + EVERY_STEPS, saved=False)
        assert tied() is None
        assert len(kept) == 5000
    assert gc.isenabled()


def test_a_save_is_a_pause_to_collect_in() -> None:
    with PlannedCollection(step=0) as garbage:
        tied = knot()
        garbage.after(50, saved=True)
        assert tied() is None
        later = knot()
        garbage.after(EVERY_STEPS, saved=False)
        assert later() is not None
        garbage.after(50 + EVERY_STEPS, saved=False)
        assert later() is None
