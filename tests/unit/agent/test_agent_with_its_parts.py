"""An agent with its own link, ranks and manifests, against a driver that the test plays.

Only the zygote is made up.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from megascale.agent import agent as module
from megascale.agent.agent import RESTART_ME, Agent
from megascale.agent.config import AgentConfig
from megascale.job import TrainingJob, canonical_json, from_mapping, resolved_yaml, revision_of
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb
from megascale.rpc.megascale_pb2_grpc import DriverServicer, add_DriverServicer_to_server


def job_of(script: str) -> TrainingJob:
    head = {"apiVersion": "megascale.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "q"}}
    command = {"args": ["sh", "-c", script]}
    return from_mapping(head | {"spec": {"ranksPerNode": 2, "steps": 1, "runtime": {"command": command}}})


LATER = job_of('echo "$RANK is done"; exit $((RANK + 3))')


class Driver(DriverServicer):
    """Sends what the test puts into `orders`; a None there ends the stream."""

    def __init__(self) -> None:
        self.orders: asyncio.Queue[pb.DriverMessage | None] = asyncio.Queue()
        self.got: list[pb.AgentMessage] = []
        self._grown = asyncio.Event()

    async def Attach(  # noqa: N802
        self, requests: AsyncIterator[pb.AgentMessage], _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DriverMessage]:
        reading = asyncio.create_task(self._read(requests))
        while (order := await self.orders.get()) is not None:
            yield order
        reading.cancel()

    async def _read(self, requests: AsyncIterator[pb.AgentMessage]) -> None:
        async for message in requests:
            self.got.append(message)
            self._grown.set()

    async def Revision(  # noqa: N802
        self, request: pb.RevisionRequest, _context: grpc.aio.ServicerContext
    ) -> pb.RevisionReply:
        assert request.revision == revision_of(LATER)
        return pb.RevisionReply(manifest=canonical_json(LATER))

    def order(self, **body: object) -> None:
        self.orders.put_nowait(pb.DriverMessage(term=3, command_id=next(iter(body)), **body))  # type: ignore[arg-type]

    def of(self, body: str) -> list[pb.AgentMessage]:
        return [message for message in self.got if message.WhichOneof("body") == body]

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._grown.clear()
            await self._grown.wait()

    async def result(self, command: str) -> pb.CommandResult:
        def found() -> list[pb.CommandResult]:
            return [message.result for message in self.of("result") if message.result.command_id == command]

        await self.until(lambda: bool(found()))
        return found()[0]


class Zygote:
    """Forks stores that sleep."""

    def __init__(self, *, engine: bool) -> None:
        assert not engine

    async def ensure(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def fork_store(self, host: str) -> tuple[int, int]:
        assert host == "127.0.0.1"
        return os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ), 2900  # noqa: ASYNC221


def play(folder: Path, scenario: Callable[[Driver], Awaitable[None]], context: LogContext) -> int:
    """The exit code of an agent whose driver follows the scenario."""
    config = AgentConfig.local(folder, "n0")
    config.job_file.write_text(resolved_yaml(job_of("sleep 60")))
    config.token_file.parent.mkdir()
    config.token_file.write_text("secret\n")

    async def main() -> int:
        driver, server = Driver(), grpc.aio.server()
        add_DriverServicer_to_server(driver, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        address = {"endpoint": f"127.0.0.1:{port}", "pid": 1, "term": 3}
        config.driver_file.write_text(json.dumps(address))
        try:
            async with asyncio.timeout(30.0), asyncio.TaskGroup() as tasks:
                running = tasks.create_task(Agent(config, context).run())
                await scenario(driver)
        finally:
            await server.stop(0)
        return running.result()

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the agent from changing the process of the test."""
    monkeypatch.setattr(module, "Zygote", Zygote)
    monkeypatch.setattr(module, "become_subreaper", lambda: None)
    monkeypatch.setattr(module.Reaper, "watch", lambda _self: None)
    monkeypatch.setattr(module.Reaper, "close", lambda _self: None)


def test_an_attempt_from_its_store_to_its_exits_and_the_greeting_of_the_next_driver(tmp_path: Path) -> None:
    context = LogContext("agent")

    async def scenario(driver: Driver) -> None:
        await driver.until(lambda: len(driver.got) >= 2)
        hello, report = driver.got[:2]
        assert hello.hello == pb.Hello(pid=os.getpid())
        assert report.report == pb.Report()
        assert (hello.fence.node, hello.fence.term, hello.fence.attempt, hello.fence.seq) == ("n0", 0, 0, 1)

        driver.order(host_store=pb.HostStore(attempt=1))
        assert (await driver.result("host_store")).store_port == 2900
        launch = pb.Launch(
            attempt=1, nodes=1, store_host="127.0.0.1", store_port=2900, revision=revision_of(LATER)
        )
        driver.order(launch=launch)
        assert (await driver.result("launch")).ok
        assert context.attempt == 1
        await driver.until(lambda: len(driver.of("exit")) == 2)
        ends = {message.exit.rank: message.exit for message in driver.of("exit")}
        assert {rank: end.exit_code for rank, end in ends.items()} == {0: 3, 1: 4}
        assert list(ends[1].log_tail) == ["1 is done"]
        assert {(end.fence.term, end.fence.attempt) for end in driver.of("exit")} == {(3, 1)}

        driver.got.clear()
        driver.orders.put_nowait(None)
        await driver.until(lambda: len(driver.of("exit")) == 2)
        assert [message.WhichOneof("body") for message in driver.got[:4]] == [
            "hello",
            "report",
            "exit",
            "exit",
        ]
        assert {message.exit.rank: message.exit for message in driver.of("exit")} == ends
        driver.order(shutdown=pb.Shutdown(restart=True))

    assert play(tmp_path, scenario, context) == RESTART_ME


def test_ranks_that_run_are_stopped_when_the_driver_lets_the_agent_go(tmp_path: Path) -> None:
    async def scenario(driver: Driver) -> None:
        await driver.until(lambda: len(driver.got) >= 2)
        driver.order(launch=pb.Launch(attempt=1, nodes=1, store_host="127.0.0.1"))
        assert (await driver.result("launch")).ok
        await driver.until(lambda: any(message.report.ranks for message in driver.of("report")))
        driver.order(collect_evidence=pb.CollectEvidence(attempt=1))
        await driver.until(lambda: bool(driver.of("evidence")))
        (found,) = driver.of("evidence")
        assert [rank.rank for rank in found.evidence.ranks] == [0, 1]
        driver.order(shutdown=pb.Shutdown())

    assert play(tmp_path, scenario, LogContext("agent")) == 0
    for local_rank in (0, 1):
        mark = f"MEGASCALE_RANK_FILE={RunDir(tmp_path).rank_file('n0', local_rank)}".encode()
        assert not any(mark in _environment(process) for process in Path("/proc").glob("[0-9]*"))


def _environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
