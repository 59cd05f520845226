"""A local fleet whose agents only sleep: requests made twice, agents that do not end, the bound."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from megascale.fleet import local as module
from megascale.fleet.base import FleetRefusedError
from megascale.fleet.local import LocalFleet
from megascale.observe.rundir import RunDir


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    """The folder of a run in which `python -m megascale.agent` is a program that sleeps."""
    agent = tmp_path / "sleeps"
    agent.write_text("#!/bin/sh\nexec sleep 60\n")
    agent.chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(agent))
    return RunDir(tmp_path / "run")


def play(*lives: Callable[[LocalFleet], Awaitable[None]], run: RunDir, limit: int = 8) -> None:
    """Each life is that of a driver; the last one releases all nodes."""

    async def main() -> None:
        async with asyncio.timeout(30.0):
            for life in lives:
                fleet = LocalFleet(run, lambda: limit)
                await fleet.start(lambda _event: None)
                try:
                    await life(fleet)
                finally:
                    if life is lives[-1]:
                        await fleet.close()

    asyncio.run(main())


def pids(run: RunDir) -> dict[str, int]:
    return {path.stem: json.loads(path.read_text())["pid"] for path in sorted(run.agents.glob("*.json"))}


def test_a_request_that_is_made_again_starts_nothing_more(run: RunDir) -> None:
    started: list[dict[str, int]] = []

    async def first(fleet: LocalFleet) -> None:
        await fleet.acquire("e-1", 2, ())
        await fleet.acquire("e-1", 2, ())
        started.append(pids(run))

    async def successor(fleet: LocalFleet) -> None:
        await fleet.acquire("e-1", 2, ())
        started.append(pids(run))
        await fleet.acquire("e-2", 1, ())
        started.append(pids(run))

    play(first, successor, run=run)
    assert sorted(started[0]) == ["node-0", "node-1"]
    assert started[1] == started[0]
    assert sorted(started[2]) == ["node-0", "node-1", "node-2"]
    assert not run.fleet_file.exists()


def test_a_successor_starts_what_its_predecessor_did_not(run: RunDir) -> None:
    async def died_in_between(fleet: LocalFleet) -> None:
        await fleet.acquire("e-1", 1, ())
        requests = json.loads(run.fleet_file.read_text())
        run.fleet_file.write_text(json.dumps(requests | {"e-1": ["node-0", "node-1"]}))

    async def successor(fleet: LocalFleet) -> None:
        await fleet.acquire("e-1", 2, ())
        assert sorted(pids(run)) == ["node-0", "node-1"]

    play(died_in_between, successor, run=run)


def test_a_restart_that_is_asked_for_again_is_one(run: RunDir) -> None:
    async def life(fleet: LocalFleet) -> None:
        await fleet.acquire("e-1", 1, ())
        before = pids(run)
        await fleet.restart("e-2", "node-0")
        after = pids(run)
        assert after != before
        await fleet.restart("e-2", "node-0")
        assert pids(run) == after
        await fleet.restart("e-3", "node-0")
        assert pids(run) != after

    play(life, run=run)


def test_only_the_newest_requests_are_remembered(run: RunDir) -> None:
    async def life(fleet: LocalFleet) -> None:
        for number in range(100):
            await fleet._remember(f"e-{number}", [])
        assert len(json.loads(run.fleet_file.read_text())) == 64
        assert len(fleet._requests) == 64

    play(life, run=run)


@pytest.mark.parametrize("text", ["", "[]", '{"e-1": 7}', '{"e-1'])
def test_a_damaged_list_of_requests_is_none(run: RunDir, text: str) -> None:
    async def life(fleet: LocalFleet) -> None:
        assert fleet._requests == {}

    run.root.mkdir(parents=True)
    run.fleet_file.write_text(text)
    play(life, run=run)


def test_the_limit_is_the_one_in_force(run: RunDir) -> None:
    limit = 1

    async def main() -> None:
        nonlocal limit
        fleet = LocalFleet(run, lambda: limit)
        await fleet.start(lambda _event: None)
        try:
            with pytest.raises(
                FleetRefusedError, match="0 local nodes run, 2 more would pass the limit of 1"
            ):
                await fleet.acquire("e-1", 2, ())
            limit = 2
            await fleet.acquire("e-2", 2, ())
        finally:
            await fleet.close()

    asyncio.run(main())


def test_an_agent_that_does_not_end_is_waited_for_in_bounds_and_told(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process does not die of SIGKILL, as one that is stuck in the kernel; the other node is released."""
    monkeypatch.setattr(module, "_TERM_S", 0.05)
    monkeypatch.setattr(module, "_KILL_S", 0.05)

    async def main() -> None:
        fleet = LocalFleet(run, lambda: 8)
        await fleet.start(lambda _event: None)
        await fleet.acquire("e-1", 2, ())
        ended = fleet._slots["node-1"]
        kept = fleet._slots["node-0"]
        with monkeypatch.context() as held:
            kill, killpg = os.kill, os.killpg
            held.setattr(module.os, "kill", lambda pid, sig: None if pid == kept.pid else kill(pid, sig))
            held.setattr(module.os, "killpg", lambda pid, sig: None if pid == kept.pid else killpg(pid, sig))
            said = rf"the agent of node-0 \(process {kept.pid}\) has not ended 0.05 s after SIGKILL"
            for call in (fleet.release("node-0"), fleet.restart("e-2", "node-0"), fleet.close()):
                with pytest.raises(FleetRefusedError, match=said):
                    await call
        assert ended.gone.is_set()
        await fleet.close()

    asyncio.run(asyncio.wait_for(main(), 30.0))
