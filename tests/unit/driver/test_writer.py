"""What is written, held and left out while the disk is full, and what people are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from megascale.core.contract import effects as fx
from megascale.core.contract import events as ev
from megascale.core.eventlog import Entry, Gap
from megascale.driver.writer import DecisionWriter

QUIET = Entry(10.0, ev.Tick(), ())
BUSY = Entry(11.0, ev.DriverStarted(1), (fx.Page("e-1", "look here"),))
FULL = OSError(28, "No space left on device")


class Disk:
    """Takes entries and records unless it is full; the clock stands at `now`."""

    def __init__(self) -> None:
        self.now, self.full = 0.0, False
        self.log: list[Any] = []
        self.records = 0
        self.said: list[str] = []
        self.writer = DecisionWriter(
            cast(Any, self), self.write, self.said.append, clock=lambda: self.now, wall=lambda: 99.0
        )

    async def append(self, entry: Entry | Gap) -> None:
        if self.full:
            raise FULL
        self.log.append(entry)

    async def write(self) -> None:
        if self.full:
            raise FULL
        self.records += 1

    def pauses(self, monkeypatch: pytest.MonkeyPatch, until: Callable[[int], bool]) -> list[float]:
        """Pauses take no real time; the disk has room again once `until` holds of their number."""
        taken: list[float] = []

        async def pause(longest_s: float) -> None:
            taken.append(longest_s)
            self.now += longest_s
            self.full = not until(len(taken))

        monkeypatch.setattr(self.writer, "_pause", pause)
        return taken


def play(scenario: Callable[[Disk], Coroutine[Any, Any, None]]) -> Disk:
    disk = Disk()
    asyncio.run(asyncio.wait_for(scenario(disk), 10.0))
    return disk


def test_an_entry_that_decides_nothing_is_left_out_and_counted_in_the_log() -> None:
    async def scenario(disk: Disk) -> None:
        disk.full = True
        for _ in range(3):
            await disk.writer.write(QUIET, must_store=False)
        disk.full = False
        assert await disk.writer.write(QUIET, must_store=False) == (True, 0.0)
        await disk.writer.write(QUIET, must_store=False)

    disk = play(scenario)
    assert disk.log == [Gap(99.0, 3), QUIET, QUIET]
    assert disk.records == 0
    assert len(disk.said) == 2


def test_a_decision_waits_and_people_hear_of_it_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(disk: Disk) -> None:
        taken = disk.pauses(monkeypatch, lambda count: count == 40)
        disk.full = True
        is_stored, took_s = await disk.writer.write(BUSY, must_store=True)
        assert is_stored
        assert took_s == sum(taken)

    disk = play(scenario)
    assert (disk.log, disk.records) == ([BUSY], 1)
    assert [("decisions wait" in text) for text in disk.said] == [True, True, True, False]
    assert 120.0 < disk.now < 180.0


def test_a_record_that_could_not_be_written_is_written_with_the_next_entry() -> None:
    async def scenario(disk: Disk) -> None:
        disk.full = True
        assert (await disk.writer.write(QUIET, must_store=True))[0] is False
        disk.full = False
        assert (await disk.writer.write(QUIET, must_store=False))[0] is True
        await disk.writer.write(QUIET, must_store=False)

    assert play(scenario).records == 1


def test_nothing_waits_any_more_once_the_job_is_to_stop() -> None:
    async def scenario(disk: Disk) -> None:
        disk.full = True
        waiting = asyncio.create_task(disk.writer.write(BUSY, must_store=True))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        disk.writer.give_way()
        assert (await waiting)[0] is False
        assert (await disk.writer.write(BUSY, must_store=True))[0] is False
        disk.full = False
        assert (await disk.writer.write(BUSY, must_store=True))[0] is True

    disk = play(scenario)
    assert disk.log == [Gap(99.0, 2), BUSY]
    assert "decisions wait" in disk.said[0]


def test_a_stop_is_not_said_to_wait() -> None:
    async def scenario(disk: Disk) -> None:
        disk.full = True
        disk.writer.give_way()
        await disk.writer.write(BUSY, must_store=True)

    (said,) = play(scenario).said
    assert said.endswith("the job is stopped without it")
