"""The driver's program: how it ends."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from megascale_operator.driver import __main__ as module
from virtual_time import VirtualLoop, run_virtual

from megascale.errors import FencedError


class Part:
    """Slots, fleet and status in one: what the program calls is noted."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def run(self) -> None:
        await asyncio.sleep(3600)

    def bind(self, _driver: object) -> None:
        self.calls.append("bind")

    async def finish(self, _driver: object) -> None:
        self.calls.append("finish")


def drive(part: Part, take_over: Any, monkeypatch: pytest.MonkeyPatch) -> float:
    """Run the program, with SIGTERM after 5 s; return the seconds it took."""
    monkeypatch.setattr(module.Driver, "take_over", take_over)

    async def main(loop: VirtualLoop) -> float:
        stopping, any_ = asyncio.Event(), cast(Any, part)
        loop.call_later(5, stopping.set)
        began = loop.time()
        await module._drive(any_, any_, any_, any_, any_, any_, stopping)
        return loop.time() - began

    return run_virtual(main)


def test_sigterm_ends_a_driver_that_still_claims_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async def take_over(*_: object) -> Any:
        await asyncio.sleep(600)

    part = Part()
    assert drive(part, take_over, monkeypatch) == pytest.approx(5)
    assert part.calls == []


def test_sigterm_ends_a_driver_without_a_final_status(monkeypatch: pytest.MonkeyPatch) -> None:
    async def take_over(*_: object) -> Any:
        return Part()

    part = Part()
    assert drive(part, take_over, monkeypatch) == pytest.approx(5)
    assert part.calls == ["bind"]


def test_the_end_of_the_job_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Part):
        async def run(self) -> None:
            """The job has ended."""

    async def take_over(*_: object) -> Any:
        return Ended()

    part = Part()
    assert drive(part, take_over, monkeypatch) < 5
    assert part.calls == ["bind", "finish"]


def test_a_driver_that_is_fenced_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def take_over(*_: object) -> Any:
        raise FencedError("another driver")

    with pytest.raises(FencedError, match="another driver"):
        drive(Part(), take_over, monkeypatch)
