"""The event log in the checkpoint store: batches, a store that is away, one that hangs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.core.contract import events as ev
from megascale.core.contract.policy import Policy
from megascale.core.eventlog import Entry, Header, entry_line
from megascale.driver import store_log as module
from megascale.driver.store_log import StoreLog


def entry(number: int) -> Entry:
    return Entry(float(number), ev.DriverStarted(number), ())


def written(folder: Path, term: int = 3) -> list[int]:
    """Terms of the events in the file, 0 for the header."""
    path = folder / "events" / f"{term}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line).get("event", {}).get("term", 0) for line in lines]


def play(folder: Path, scenario: Callable[[StoreLog], Awaitable[None]]) -> None:
    async def main() -> None:
        log = StoreLog(str(folder))
        await log.begin(Header("j", Policy(nodes=1), None), 3)
        async with asyncio.timeout(20.0):
            await scenario(log)

    asyncio.run(main())


def test_what_came_is_written_in_batches_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    async def scenario(log: StoreLog) -> None:
        append = log._storage.append

        def count(name: str, raw: bytes) -> None:
            batches.append(raw.count(b"\n"))
            append(name, raw)

        monkeypatch.setattr(log._storage, "append", count)
        monkeypatch.setattr(module, "_PERIOD_S", 0.0)
        await log.append(entry(1))
        running = asyncio.create_task(log.run(cast(Any, None)))
        while not batches:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        running.cancel()
        await log.append(entry(2))
        await log.close()

    play(tmp_path, scenario)
    assert written(tmp_path) == [0, 1, 2]
    assert batches == [2, 1]


def test_what_the_store_does_not_take_is_kept_in_order_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(log: StoreLog) -> None:
        append = log._storage.append

        def away(_name: str, _raw: bytes) -> None:
            raise OSError(5, "Input/output error")

        log._storage.append = away  # type: ignore[method-assign]
        for number in (1, 2):
            await log.append(entry(number))
            await log._flush()
        assert written(tmp_path) == []
        log._storage.append = append  # type: ignore[method-assign]
        await log.append(entry(3))
        await log._flush()
        assert written(tmp_path) == [0, 1, 2, 3]
        assert log._held == 0
        log._storage.append = away  # type: ignore[method-assign]
        await log.append(entry(4))
        await log._flush()

    play(tmp_path, scenario)
    assert caplog.text.count("events/3.jsonl cannot be written, events are held") == 2


def test_past_the_bound_the_log_has_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(log: StoreLog) -> None:
        monkeypatch.setattr(module, "_HELD_BYTES", log._held + 2 * (len(entry_line(entry(1))) + 1))
        for number in range(1, 6):
            await log.append(entry(number))
        assert log.dropped == 3
        await log._flush()
        await log.append(entry(9))
        await log.close()
        assert written(tmp_path) == [0, 1, 2, 9]

    play(tmp_path, scenario)
    assert caplog.text.count("events/3.jsonl has a gap") == 1


def test_a_store_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import threading

    go = threading.Event()
    monkeypatch.setattr(module, "_CLOSE_S", 0.05)

    async def scenario(log: StoreLog) -> None:
        monkeypatch.setattr(log._storage, "append", lambda _name, _raw: go.wait(20.0))
        await log.close()
        go.set()

    play(tmp_path, scenario)
    assert "the last events were not written to events/3.jsonl" in caplog.text


def test_nothing_to_write_is_no_write(tmp_path: Path) -> None:
    async def scenario(log: StoreLog) -> None:
        await log._flush()
        (tmp_path / "events" / "3.jsonl").unlink()
        await log._flush()

    play(tmp_path, scenario)
    assert written(tmp_path) == []
