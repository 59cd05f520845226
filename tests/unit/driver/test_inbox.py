from __future__ import annotations

import asyncio

import pytest

from megascale.core.contract import events as ev
from megascale.driver.inbox import Inbox


def report(node: str, attempt: int) -> ev.NodeReport:
    return ev.NodeReport(node, "a", attempt)


def read_one(inbox: Inbox) -> ev.Event:
    return asyncio.run(inbox.next(0.0))


def read_all(inbox: Inbox) -> list[ev.Event]:
    async def scenario() -> list[ev.Event]:
        return [await inbox.next(None) for _ in range(len(inbox))]

    return asyncio.run(scenario())


def test_only_the_newest_report_of_a_node_waits() -> None:
    inbox = Inbox()
    for attempt in (1, 2, 3):
        inbox.post(report("n0", attempt))
        inbox.post(report("n1", attempt))
    inbox.post(ev.DriverStarted(1))
    assert read_all(inbox) == [report("n0", 3), report("n1", 3), ev.DriverStarted(1)]
    inbox.post(report("n0", 4))
    assert read_all(inbox) == [report("n0", 4)]


def test_a_tick_comes_when_nothing_else_does() -> None:
    assert asyncio.run(Inbox().next(0.01)) == ev.Tick()


def test_what_waits_is_bounded_and_advice_goes_first() -> None:
    inbox = Inbox()
    for number in range(49152):
        inbox.post(ev.EffectDone(f"e-{number}"))
    inbox.post(ev.LogMatch("n0", "rule", "gpu", "alert", "line"))
    assert (len(inbox), inbox.dropped) == (49152, 1)
    for number in range(65536 - 49152):
        inbox.post(ev.EffectDone(f"e-{number}"))
    with pytest.raises(asyncio.QueueFull):
        inbox.post(ev.EffectDone("e-last"))


def test_how_long_an_event_waited_counts_from_when_it_was_posted() -> None:
    now = [0.0]
    inbox = Inbox(lambda: now[0])
    inbox.post(report("n0", 1))
    now[0] = 3.0
    inbox.post(report("n0", 2))  # replaces the first, and keeps its place
    inbox.post(ev.DriverStarted(1))
    now[0] = 5.0
    assert read_one(inbox) == report("n0", 2)
    assert inbox.waited_s == 5.0
    assert read_one(inbox) == ev.DriverStarted(1)
    assert inbox.waited_s == 2.0
    assert read_one(inbox) == ev.Tick()
    assert inbox.waited_s == 0.0
