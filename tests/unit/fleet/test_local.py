"""Local nodes: started away from the event loop, one at a time, and none is left when the fleet is closed."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from megascale.fleet import local as module
from megascale.fleet.base import FleetRefusedError
from megascale.fleet.local import LocalFleet
from megascale.observe.rundir import RunDir


class Agents:
    """Starts `sleep` in place of agents; notes the threads that start them."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self._start = subprocess.Popen

    def start(self, _command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        self.threads.append(threading.current_thread().name)
        self.entered.set()
        assert self.go.wait(20.0)
        process = self._start(["/bin/sleep", "60"], **options)
        self.started.append(process)
        return process


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> Agents:
    found = Agents()
    monkeypatch.setattr(module.subprocess, "Popen", found.start)
    return found


def nodes_of(run: RunDir) -> list[str]:
    return sorted(path.stem for path in run.agents.glob("*.json"))


async def started(run: RunDir, limit: int) -> LocalFleet:
    fleet = LocalFleet(run, lambda: limit)
    await fleet.start(lambda _event: None)
    return fleet


def test_agents_are_started_away_from_the_event_loop(tmp_path: Path, agents: Agents) -> None:
    async def scenario() -> None:
        fleet = await started(RunDir(tmp_path), 2)
        await fleet.acquire("e-1", 2, ("node-0",))
        assert nodes_of(RunDir(tmp_path)) == ["node-1", "node-2"]
        await fleet.restart("e-2", "node-1")
        assert agents.threads == ["the run folder"] * 3
        await fleet.close()

    asyncio.run(scenario())
    assert all(process.poll() is not None for process in agents.started)


def test_requests_at_the_same_time_do_not_pass_the_limit(tmp_path: Path, agents: Agents) -> None:
    async def scenario() -> None:
        fleet = await started(RunDir(tmp_path), 3)
        answers = await asyncio.gather(
            *(fleet.acquire(f"e-{number}", 1, ()) for number in range(5)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [type(None)] * 3 + [FleetRefusedError] * 2
        assert nodes_of(RunDir(tmp_path)) == ["node-0", "node-1", "node-2"]
        await fleet.close()

    asyncio.run(scenario())
    assert len(agents.started) == 3


def test_a_node_that_is_being_started_is_released_by_close(tmp_path: Path, agents: Agents) -> None:
    async def scenario() -> None:
        fleet = await started(RunDir(tmp_path), 1)
        agents.go.clear()
        acquiring = asyncio.create_task(fleet.acquire("e-9", 1, ()))
        await asyncio.to_thread(agents.entered.wait, 20.0)
        closing = asyncio.create_task(fleet.close())
        await asyncio.sleep(0)
        agents.go.set()
        await asyncio.gather(acquiring, closing)
        assert nodes_of(RunDir(tmp_path)) == []

    asyncio.run(scenario())
    (process,) = agents.started
    assert process.poll() is not None


def test_the_agents_of_an_earlier_driver_are_adopted(tmp_path: Path, agents: Agents) -> None:
    async def earlier() -> None:
        await (await started(RunDir(tmp_path), 2)).acquire("e-1", 2, ())

    async def later() -> None:
        (RunDir(tmp_path).agents / "node-7.json").write_text("{")
        fleet = await started(RunDir(tmp_path), 2)
        with pytest.raises(FleetRefusedError, match="2 local nodes run, 1 more would pass the limit of 2"):
            await fleet.acquire("e-9", 1, ())
        await fleet.close()

    asyncio.run(earlier())
    asyncio.run(later())
    assert all(process.wait(20.0) is not None for process in agents.started)
