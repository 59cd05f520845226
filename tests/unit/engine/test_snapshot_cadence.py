"""How often snapshots are taken: a pure function of measured times and the share agreed on."""

from __future__ import annotations

from itertools import pairwise

import pytest

from megascale.engine.cadence import SnapshotCadence


def drive(cadence: SnapshotCadence, steps: int, *, step_s: float, copy_s: float, first: int = 1) -> list[int]:
    """Run steps; every settlement takes this rank's own share. Returns the steps that got a snapshot."""
    taken = []
    for step in range(first, first + steps):
        if cadence.is_due(step, step_s):
            taken.append(step)
            if cadence.took(step, copy_s):
                cadence.settle(cadence.share)
    return taken


def test_cheap_copies_follow_every_step() -> None:
    cadence = SnapshotCadence()
    assert drive(cadence, 200, step_s=0.1, copy_s=0.0009) == list(range(1, 201))
    assert cadence.every_steps == 1


@pytest.mark.parametrize(("copy_s", "every"), [(0.0011, 2), (0.01, 10), (0.05, 50)])
def test_the_stall_stays_within_one_percent(copy_s: float, every: int) -> None:
    cadence = SnapshotCadence()
    taken = drive(cadence, 1000, step_s=0.1, copy_s=copy_s)
    assert cadence.every_steps == every
    later = [step for step in taken if step > 10]
    assert len(later) * copy_s <= 0.0101 * 990 * 0.1
    assert {b - a for a, b in pairwise(later)} == {every}


def test_the_first_use_of_a_buffer_does_not_count() -> None:
    cadence = SnapshotCadence()
    drive(cadence, 2, step_s=0.1, copy_s=1.0)
    drive(cadence, 20, step_s=0.1, copy_s=0.0005, first=3)
    assert cadence.every_steps == 1


def test_a_changed_cost_is_noticed() -> None:
    cadence = SnapshotCadence()
    drive(cadence, 10, step_s=0.1, copy_s=0.0001)
    drive(cadence, 200, step_s=0.1, copy_s=0.005, first=11)
    assert cadence.every_steps == 5


def test_the_first_choice_and_every_change_are_told() -> None:
    cadence = SnapshotCadence()
    for step in range(1, 7):
        assert cadence.is_due(step, 0.1)
        assert not cadence.took(step, 0.0005)
    assert cadence.is_due(7, 0.1)
    assert cadence.took(7, 0.0005)
    assert cadence.settle(0.005)
    cadence.took(8, 0.0005)
    assert not cadence.settle(0.006)
    assert cadence.settle(0.02)
