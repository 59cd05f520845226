"""Storage calls in threads: what hangs holds up nobody else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from megascale.errors import UnreachableError
from megascale.offload import StorageThread


class Hung:
    """A call that hangs until it is let go; counts how often it was begun."""

    def __init__(self) -> None:
        self.began, self.go = 0, threading.Event()

    def __call__(self) -> str:
        self.began += 1
        self.go.wait(30.0)
        return "at last"


def run(scenario: Callable[[StorageThread, Hung], object]) -> None:
    async def main() -> None:
        hung = Hung()
        try:
            async with asyncio.timeout(20.0):
                await scenario(StorageThread("the store"), hung)  # type: ignore[misc]
        finally:
            hung.go.set()

    asyncio.run(main())


def test_results_and_errors_come_back() -> None:
    async def scenario(thread: StorageThread, _hung: Hung) -> None:
        here = threading.current_thread()
        assert await thread.call(threading.current_thread) is not here
        assert await thread.call(lambda: 7, 1.0) == 7
        with pytest.raises(ZeroDivisionError):
            await thread.call(lambda: 1 // 0)

    run(scenario)


def test_the_loop_goes_on_while_a_call_hangs_and_its_caller_is_told() -> None:
    async def scenario(thread: StorageThread, hung: Hung) -> None:
        call = asyncio.create_task(thread.call(hung, 0.2))
        beats = 0
        while not call.done():
            await asyncio.sleep(0.01)
            beats += 1
        assert beats > 5
        with pytest.raises(UnreachableError, match=r"the store did not answer within 0\.2 s"):
            await call

    run(scenario)


def test_a_call_that_hangs_is_not_begun_twice_and_the_next_one_waits_for_it() -> None:
    async def scenario(thread: StorageThread, hung: Hung) -> None:
        for _ in range(3):
            with pytest.raises(UnreachableError):
                await thread.call(hung, 0.05)
        assert hung.began == 1
        later = asyncio.create_task(thread.call(lambda: "next"))
        await asyncio.sleep(0.05)
        assert not later.done()
        hung.go.set()
        assert await later == "next"

    run(scenario)


def test_an_error_of_the_system_is_not_taken_for_the_bound() -> None:
    def times_out() -> None:
        raise TimeoutError(110, "Connection timed out")

    async def scenario(thread: StorageThread, _hung: Hung) -> None:
        with pytest.raises(TimeoutError, match="Connection timed out"):
            await thread.call(times_out, 5.0)

    run(scenario)


def test_an_error_that_comes_too_late_is_nobodys() -> None:
    async def scenario(thread: StorageThread, hung: Hung) -> None:
        def fails() -> None:
            hung()
            raise OSError(5, "Input/output error")

        with pytest.raises(UnreachableError):
            await thread.call(fails, 0.05)
        hung.go.set()
        assert await thread.call(lambda: 1) == 1

    run(scenario)


def test_a_hung_call_does_not_keep_the_loop_from_ending() -> None:
    hung = Hung()

    async def main() -> None:
        with pytest.raises(UnreachableError):
            await StorageThread("the store").call(hung, 0.05)

    asyncio.run(main())
    hung.go.set()
