"""What a rank does when the last state of its launch cannot be saved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from megascale.engine.loop import EXIT_COMPLETED, EXIT_SAVED, EXIT_UNSAVED, Loop
from megascale.engine.saving import until_saved


class Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def tries(results: list[bool], limit_s: float = 120.0, agree: Any = bool) -> tuple[bool, Time]:
    time = Time()
    found = until_saved(
        lambda: results.pop(0) if results else False, agree, limit_s, clock=lambda: time.now, sleep=time.sleep
    )
    return found, time


def test_saving_is_tried_until_it_succeeds() -> None:
    saved, time = tries([False, False, True])
    assert saved
    assert time.pauses == [1.0, 2.0, 4.0]


def test_saving_is_given_up_within_the_bound() -> None:
    saved, time = tries([])
    assert not saved
    assert max(time.pauses) == 15.0
    assert 100.0 < time.now <= 120.0


def test_ranks_give_up_together() -> None:
    saved, time = tries([], agree=lambda _ok: False)
    assert (saved, time.pauses) == (False, [])


class Saver:
    def __init__(self, saved: bool, again: bool) -> None:
        self.saved, self.again = saved, again
        self.calls: list[str] = []

    def save(self, step: int) -> bool:
        self.calls.append(f"save {step}")
        return self.saved

    def save_again(self, step: int) -> bool:
        self.calls.append(f"again {step}")
        return self.again


def ran(saver: Saver, *, steps: int, leave_at: int = 0) -> int:
    """The exit code of a loop that saves every second step, and is asked to leave after `leave_at`."""
    loop: Any = Loop.__new__(Loop)  # the parts that decide about saves
    loop._state = SimpleNamespace(step=0)
    loop._plan = SimpleNamespace(spec=SimpleNamespace(steps=steps, checkpoint=SimpleNamespace(every_steps=2)))
    loop._launch = SimpleNamespace(save_every_steps=0)
    loop._saver, loop._stall, loop._collectives = saver, 0.0, 0
    loop._rank_file = SimpleNamespace(update=lambda **_changes: None)

    def step(number: int) -> Any:
        loop._state.step = number
        return SimpleNamespace(votes=[0.0, float(number == leave_at)])

    loop._step = step
    return int(loop._run_steps())


@pytest.mark.parametrize(
    ("saved", "again", "code"),
    [(True, False, EXIT_COMPLETED), (False, True, EXIT_COMPLETED), (False, False, EXIT_UNSAVED)],
)
def test_a_job_is_complete_once_its_last_state_is_saved(saved: bool, again: bool, code: int) -> None:
    saver = Saver(saved, again)
    assert ran(saver, steps=4) == code
    assert saver.calls == ["save 2", "save 4"] + ([] if saved else ["again 4"])


@pytest.mark.parametrize(("again", "code"), [(True, EXIT_SAVED), (False, EXIT_UNSAVED)])
def test_a_rank_that_leaves_on_request_says_whether_it_saved(again: bool, code: int) -> None:
    saver = Saver(saved=False, again=again)
    assert ran(saver, steps=9, leave_at=3) == code
    assert saver.calls == ["save 2", "save 3", "again 3"]
