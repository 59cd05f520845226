"""A real driver with real streams; record and fleet are the test's."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import grpc
import pytest
from replaying import mismatches
from simulated.agent import SimulatedAgent
from simulated.world import Pace, World

from megascale.agent.config import AgentConfig
from megascale.cli.history import EventLogFile, History
from megascale.cli.verify import verify
from megascale.core.contract import events as ev
from megascale.core.contract.codec import Json
from megascale.core.eventlog import Entry, Gap, Header
from megascale.core.state.record import JobState, NodeStatus
from megascale.driver.driver import Driver
from megascale.driver.listener import LocalListener, bind
from megascale.driver.log import EventLog
from megascale.driver.ports import BackgroundService, DriverPorts
from megascale.driver.record import LocalRecord
from megascale.errors import FencedError, InputError, UnreachableError
from megascale.fleet.base import Health, SlotEvent
from megascale.job import load_job
from megascale.observe.rundir import RunDir, log_parts

SILENCE_S = 4


class Fleet:
    """Nodes come by themselves and are never asked for."""

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None: ...

    async def acquire(self, effect_id: str, count: int, avoid: tuple[str, ...]) -> None: ...

    async def release(self, node: str) -> None: ...

    async def restart(self, effect_id: str, node: str) -> None: ...

    async def quarantine(self, node: str, incident: str) -> None: ...

    def labels(self, node: str) -> dict[str, str]:  # noqa: ARG002
        return {}

    async def probe(self, node: str) -> Health:
        return Health(healthy=None, detail=f"{node} is made up")

    async def close(self) -> None: ...


class Record(LocalRecord):
    """A record whose store can be away, and that a successor can take over."""

    away = False
    fenced = False

    async def write(self, snapshot: Json, revisions: Mapping[str, str]) -> None:
        if self.fenced:
            raise FencedError("a driver of term 9 took over")
        if self.away:
            raise UnreachableError("the record's store is away")
        await super().write(snapshot, revisions)


async def until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    for _ in range(int(timeout_s / 0.05)):
        if holds():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("waited in vain")


def drive(
    folder: Path,
    scenario: Callable[[Driver, Record], Awaitable[None]],
    services: Sequence[BackgroundService] = (),
    fleet: Fleet | None = None,
    log: EventLog | None = None,
) -> None:
    """Run `scenario` beside a driver of two nodes that train."""
    run = RunDir(folder)
    health = {"heartbeatSeconds": 1, "silenceSeconds": SILENCE_S}
    spec = {"nodes": 2, "spareNodes": 0, "steps": 10**6, "health": health}
    spec["runtime"] = {"command": {"args": ["python", "none.py"]}}
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}}
    run.job_file.write_text(json.dumps(head | {"spec": spec}))

    async def main() -> None:
        record = Record(run, "j")
        ports = DriverPorts(record, fleet or Fleet(), LocalListener(run), log or EventLog(run), services)
        driver = await Driver.take_over(run, load_job(run.job_file), ports)
        world = World(Pace(0.05, 0.05, 0.1), 10**6)
        async with asyncio.timeout(100.0):
            for number in range(2):
                run.renew_agent_token(f"n{number}")
            driving = asyncio.create_task(driver.run())
            agents = [
                asyncio.create_task(SimulatedAgent(AgentConfig.local(folder, f"n{n}"), world, 1, 0.5).run())
                for n in range(2)
            ]
            playing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            try:
                await until(lambda: driver.core.record.state is JobState.RUNNING or driving.done())
                playing = asyncio.ensure_future(scenario(driver, record))
                await asyncio.wait((playing, driving), return_when=asyncio.FIRST_COMPLETED)
                if not driving.done():
                    await playing
            finally:
                for task in (driving, playing, *agents):
                    task.cancel()
                ends = await asyncio.gather(driving, playing, *agents, return_exceptions=True)
        if isinstance(ends[0], Exception):
            raise ends[0]

    asyncio.run(main())


def test_what_passed_while_decisions_waited_is_held_against_nobody(tmp_path: Path) -> None:
    async def scenario(driver: Driver, record: Record) -> None:
        record.away = True
        driver.post(ev.ManualCommand("save", "so that there is something to write"))
        await asyncio.sleep(SILENCE_S * 1.75)
        step = driver.core.live.step
        record.away = False
        await until(lambda: driver.core.live.step > step)
        assert driver.core.record.state is JobState.RUNNING
        assert driver.core.record.incidents == []
        assert driver.core.record.incident is None
        alerts = [one["message"] for one in driver.board.document()["alerts"]]
        assert "decisions wait for it" in alerts[0]
        assert alerts[1:] == ["the driver can write its record and log again"]

    drive(tmp_path, scenario)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").open()]
    kinds = [line.get("event", {}).get("kind") for line in lines]
    assert (kinds.count("DriverStarted"), kinds.count("DriverPaused")) == (1, 1)
    assert max(line.get("waited_s", 0.0) for line in lines) > SILENCE_S
    assert mismatches(map(json.dumps, lines)) == []


class FlakyLog(EventLog):
    """A log whose disk can be full."""

    away = False

    async def append(self, entry: Entry | Gap) -> None:
        if self.away:
            raise OSError(28, "No space left on device")
        await super().append(entry)


def test_a_log_in_several_files_is_verified_as_a_whole_and_again_after_a_gap(tmp_path: Path) -> None:
    log = FlakyLog(RunDir(tmp_path), part_bytes=20_000)

    async def scenario(driver: Driver, _record: Record) -> None:
        await until(lambda: len(log_parts(tmp_path / "events.jsonl")) >= 2)
        log.away = True
        step = driver.core.live.step
        await until(lambda: driver.core.live.step > step + 5)
        log.away = False
        await until(lambda: len(log_parts(tmp_path / "events.jsonl")) >= 4)
        assert driver.core.record.state is JobState.RUNNING
        assert driver.core.record.incidents == []
        assert {node.status for node in driver.core.live.nodes.values()} == {NodeStatus.READY}

    drive(tmp_path, scenario, log=log)
    file = EventLogFile(tmp_path / "events.jsonl")
    items = [item for _, item in file]
    gaps = [index for index, item in enumerate(items) if isinstance(item, Gap)]
    assert gaps
    assert any(isinstance(item, Header) and item.continues for item in items[gaps[0] : gaps[0] + 3])
    verdict = verify(file)
    assert (verdict.lives, verdict.mismatch) == (1, None)
    skipped = len([item for item in items if isinstance(item, Entry)]) - verdict.events
    assert skipped <= 2 * len(gaps)
    assert History(file).lives == 1


def test_a_driver_that_was_superseded_ends(tmp_path: Path) -> None:
    async def scenario(driver: Driver, record: Record) -> None:
        record.fenced = True
        driver.post(ev.ManualCommand("save", "so that there is something to write"))
        await asyncio.sleep(5.0)

    with pytest.raises(FencedError, match="term 9 took over"):
        drive(tmp_path, scenario)


def test_a_reachable_address_needs_tls() -> None:
    async def scenario() -> None:
        server = grpc.aio.server()
        for host in ("0.0.0.0", "10.0.0.1", "node-1"):
            with pytest.raises(InputError, match="without TLS only a loopback address is allowed"):
                bind(server, host, None)
        assert bind(server, "127.0.0.1", None).startswith("127.0.0.1:")
        await server.stop(0)

    asyncio.run(scenario())


def test_a_store_that_hangs_stops_neither_heartbeats_nor_the_answer_to_a_kill(tmp_path: Path) -> None:
    """A commit that is a FIFO: whoever opens it to read waits for a writer, as on a server that is gone."""
    fifo = tmp_path / "checkpoints" / "commits" / "5.1.json"

    def scans() -> int:
        return sum(1 for thread in threading.enumerate() if thread.name == "the checkpoint store")

    async def scenario(driver: Driver, _record: Record) -> None:
        fifo.parent.mkdir(parents=True)
        os.mkfifo(fifo)
        driver.core.policy = dataclasses.replace(driver.core.policy, kill_s=1.0)
        for attempt in (1, 2):
            node = driver.core.live.nodes["n0"]
            began, heard = asyncio.get_running_loop().time(), node.heard_until
            driver.post(ev.RankExited("n0", node.incarnation, attempt, 0, signal=9, at=time.time()))
            await until(lambda: driver.core.record.state is JobState.STOPPING)
            await until(lambda: driver.core.live.nodes["n0"].heard_until > heard)  # noqa: B023
            assert driver.core.record.state is JobState.STOPPING
            await until(lambda: driver.core.record.attempt == attempt + 1)  # noqa: B023
            assert asyncio.get_running_loop().time() - began < 10.0
            assert scans() == 1
            await until(lambda: driver.core.record.state is JobState.RUNNING)
        alerts = [one["message"] for one in driver.board.document()["alerts"]]
        assert any("the checkpoint store did not answer within" in alert for alert in alerts)

    try:
        drive(tmp_path, scenario)
    finally:
        with contextlib.suppress(OSError):  # nobody reads: the thread has ended
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


def test_a_service_that_fails_ends_the_driver(tmp_path: Path) -> None:
    class Broken:
        async def run(self, driver: Driver) -> None:
            await until(lambda: driver.core.record.state is JobState.RUNNING)
            raise KeyError("a defect")

    async def scenario(driver: Driver, _record: Record) -> None:
        await asyncio.Event().wait()

    with pytest.raises(KeyError, match="a defect"):
        drive(tmp_path, scenario, services=(Broken(),))


def test_an_effect_that_meets_a_defect_ends_the_driver(tmp_path: Path) -> None:
    class Broken(Fleet):
        lost = False

        async def acquire(self, _effect_id: str, _count: int, _avoid: tuple[str, ...]) -> None:
            if self.lost:
                raise KeyError("a defect")

    fleet = Broken()

    async def scenario(driver: Driver, _record: Record) -> None:
        fleet.lost = True
        driver.post(ev.NodeGone("n1", driver.core.live.nodes["n1"].incarnation, "it burns", at=time.time()))
        await asyncio.Event().wait()

    with pytest.raises(KeyError, match="a defect"):
        drive(tmp_path, scenario, fleet=fleet)
