"""Workers: a failing key does not affect others. In virtual time."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Hashable

import pytest
from megascale_operator.kube.clock import Clock
from megascale_operator.kube.errors import NotLeaderError
from megascale_operator.kube.queue import KeyedQueue
from megascale_operator.metrics import Metrics
from megascale_operator.workers import STUCK_S, Workers
from virtual_time import VirtualLoop, run_virtual

from megascale.errors import MegascaleError


def test_an_unexpected_error_is_logged_and_the_key_retried(caplog: pytest.LogCaptureFixture) -> None:
    async def main(loop: VirtualLoop) -> None:
        looks: list[tuple[str, float]] = []

        async def reconcile(key: str) -> float | None:
            looks.append((key, loop.time()))
            if key == "broken":
                raise KeyError("metadata")
            return 10.0

        queue: KeyedQueue[str] = KeyedQueue(loop.time, seed=1)
        metrics = Metrics()
        running = asyncio.create_task(Workers("jobs", queue, reconcile, Clock(loop.time), metrics).run())
        queue.add("broken")
        queue.add("sound")
        await asyncio.sleep(60)
        running.cancel()
        sound = [at for key, at in looks if key == "sound"]
        broken = [at for key, at in looks if key == "broken"]
        assert len(sound) == 6
        gaps = [later - earlier for earlier, later in itertools.pairwise(broken)]
        assert gaps == sorted(gaps)
        assert gaps[0] <= 1.0
        assert b"megascale_operator_reconcile_errors_total" in metrics.page()

    with caplog.at_level(logging.ERROR):
        run_virtual(main)
    assert "KeyError" in caplog.text


@pytest.mark.parametrize(
    ("queue", "key", "field", "name"),
    [("jobs", ("ml", "q"), "job", "ml/q"), ("nodes", "n1", "node", "n1"), ("checks", "rack-7", "job", None)],
)
def test_log_lines_name_the_object_in_a_field(
    caplog: pytest.LogCaptureFixture, queue: str, key: Hashable, field: str, name: str | None
) -> None:
    async def fail(_: Hashable) -> float | None:
        raise MegascaleError("no quota")

    async def main(loop: VirtualLoop) -> None:
        keys: KeyedQueue[Hashable] = KeyedQueue(loop.time, seed=1)
        running = asyncio.create_task(Workers(queue, keys, fail, Clock(loop.time), Metrics()).run())
        keys.add(key)
        await asyncio.sleep(0.1)
        running.cancel()

    run_virtual(main)
    first = caplog.records[0]
    assert (first.levelname, getattr(first, field, None)) == ("WARNING", name)
    assert "no quota" in first.getMessage()


def test_losing_leadership_is_not_counted_as_an_error() -> None:
    async def main(loop: VirtualLoop) -> None:
        async def reconcile(key: str) -> float | None:
            raise NotLeaderError("not the leader")

        queue: KeyedQueue[str] = KeyedQueue(loop.time)
        metrics = Metrics()
        running = asyncio.create_task(Workers("jobs", queue, reconcile, Clock(loop.time), metrics).run())
        queue.add("a")
        await asyncio.sleep(1)
        assert len(queue) == 0
        assert b'reconcile_errors_total{controller="jobs"}' not in metrics.page()
        running.cancel()

    run_virtual(main)


def test_stuck_reconciles_are_reported() -> None:
    async def main(loop: VirtualLoop) -> None:
        async def reconcile(key: str) -> float | None:
            await asyncio.Event().wait()
            return None

        queue: KeyedQueue[str] = KeyedQueue(loop.time)
        workers = Workers("jobs", queue, reconcile, Clock(loop.time), Metrics())
        running = asyncio.create_task(workers.run())
        queue.add("a")
        await asyncio.sleep(STUCK_S - 1)
        assert workers.stuck() == []
        await asyncio.sleep(2)
        assert workers.stuck() == ["jobs a"]
        running.cancel()

    run_virtual(main)
