"""The work queue: keys queued and processed once, delays, back-off. In virtual time."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from megascale_operator.kube.queue import MAX_DELAY_S, KeyedQueue
from virtual_time import VirtualLoop, run_virtual


def test_a_key_is_queued_once_and_processed_by_one_worker() -> None:
    async def main(loop: VirtualLoop) -> None:
        queue: KeyedQueue[str] = KeyedQueue(loop.time)
        for key in ("a", "b", "a"):
            queue.add(key)
        assert len(queue) == 2
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert await queue.get() == "b"
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(5)
        assert not waiting.done(), "a is being processed and must not be given to a second worker"
        queue.done("a")
        assert await waiting == "a"

    run_virtual(main)


def test_the_earlier_of_two_delays_applies() -> None:
    async def main(loop: VirtualLoop) -> None:
        queue: KeyedQueue[str] = KeyedQueue(loop.time)
        queue.add_after("a", 60)
        queue.add_after("a", 10)
        queue.add_after("a", 30)
        start = loop.time()
        assert await queue.get() == "a"
        assert loop.time() - start == 10
        queue.done("a")
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(100)
        assert not waiting.done(), "later delays of the same key are dropped"
        waiting.cancel()

    run_virtual(main)


def test_failures_back_off_from_one_second_to_five_minutes() -> None:
    async def main(loop: VirtualLoop) -> None:
        queue: KeyedQueue[str] = KeyedQueue(loop.time, seed=1)
        delays = [queue.failed("a") for _ in range(12)]
        assert 0.75 <= delays[0] <= 1.0
        assert all(delay <= 300 for delay in delays)
        assert delays[-1] > 0.75 * MAX_DELAY_S - 1
        queue.succeeded("a")
        assert queue.failed("a") <= 1.0
        queue.forget("a")
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(1000)
        assert not waiting.done(), "a forgotten key is not queued"
        waiting.cancel()

    run_virtual(main)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 50)), max_size=30))
def test_every_key_that_was_added_comes_out_in_time(adds: list[tuple[str, float]]) -> None:
    async def main(loop: VirtualLoop) -> None:
        queue: KeyedQueue[str] = KeyedQueue(loop.time)
        due: dict[str, float] = {}
        for key, delay_s in adds:
            queue.add_after(key, delay_s)
            due[key] = min(due.get(key, 1e9), loop.time() + delay_s)
        seen: dict[str, float] = {}
        while len(seen) < len(due):
            key = await queue.get()
            seen[key] = loop.time()
            queue.done(key)
        assert all(abs(seen[key] - due[key]) < 1e-6 for key in due)

    run_virtual(main)
