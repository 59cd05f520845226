"""A kill does not wait for the orders that it makes void, and they leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent import agent as module
from megascale.agent import ranks as ranks_module
from megascale.agent.agent import Agent
from megascale.agent.config import AgentConfig
from megascale.agent.processes import process_state
from megascale.observe.logs import LogContext
from megascale.observe.rundir import RunDir
from megascale.rpc import megascale_pb2 as pb

MANIFEST = """\
apiVersion: megascale.io/v1alpha1
kind: TrainingJob
metadata: {name: q}
spec:
  ranksPerNode: 2
  steps: 1
  runtime: {command: {args: [sleep, "600"]}}
"""
KILL = pb.DriverMessage(term=3, command_id="kill", kill=pb.Kill(attempt=4, deadline_s=10.0))


class Stage:
    """An agent that serves orders, and what it would send."""

    def __init__(self, folder: Path) -> None:
        run = RunDir(folder)
        run.job_file.write_text(MANIFEST)
        self.agent = Agent(
            AgentConfig(run, "n0", run.job_file, run.driver_file, run.token_file), LogContext("agent")
        )
        self.results: list[pb.CommandResult] = []
        self._grown = asyncio.Event()
        self.agent._link.send = self._take  # type: ignore[method-assign]

    def _take(self, message: pb.AgentMessage) -> None:
        if message.HasField("result"):
            self.results.append(message.result)
            self._grown.set()

    async def order(self, name: str, **body: Any) -> None:
        await self.agent._handle_command(pb.DriverMessage(term=3, command_id=name, **body))

    async def launch(self, attempt: int = 4, name: str = "launch") -> None:
        launch = pb.Launch(attempt=attempt, nodes=1, store_host="127.0.0.1", store_port=1)
        await self.order(name, launch=launch)

    async def kill(self) -> None:
        """Kill attempt 4; the answer has to come although whatever else runs does not end by itself."""
        await self.agent._handle_command(KILL)
        async with asyncio.timeout(10.0):
            await self.answered("kill")

    async def answered(self, name: str) -> pb.CommandResult:
        while name not in self.answers():
            self._grown.clear()
            await self._grown.wait()
        return next(result for result in self.results if result.command_id == name)

    def answers(self) -> dict[str, bool]:
        return {result.command_id: result.ok for result in self.results}


def play(folder: Path, scenario: Callable[[Stage], Awaitable[None]]) -> None:
    async def main() -> None:
        stage = Stage(folder)
        async with asyncio.timeout(40.0), asyncio.TaskGroup() as stage.agent._group:
            try:
                await scenario(stage)
            finally:
                await stage.agent._ranks.kill(10**6, 10.0)
                for task in tuple(stage.agent._tasks):
                    task.cancel()

    asyncio.run(main())


class StuckManifests:
    """A driver that does not answer when the manifest is fetched."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def get(self, _revision: str) -> None:
        self.asked.set()
        await asyncio.Event().wait()


def test_a_kill_ends_a_launch_and_what_waits_behind_it(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        manifests = StuckManifests()
        stage.agent._ranks._manifests = cast(Any, manifests)
        await stage.launch()
        await manifests.asked.wait()
        await stage.order("store", host_store=pb.HostStore(attempt=4))
        await stage.order("check", check_numbers=pb.CheckNumbers(deadline_s=60.0))
        await stage.kill()
        assert stage.answers() == {"launch": False, "store": False, "check": False, "kill": True}
        assert "attempt 4 was killed meanwhile" in stage.results[0].reason
        await asyncio.sleep(0)
        assert stage.agent._orders == {}

    play(tmp_path, scenario)


def test_a_kill_ends_a_check_and_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()
    processes: list[asyncio.subprocess.Process] = []
    create = asyncio.create_subprocess_exec

    async def instead(*_command: str, **how: Any) -> asyncio.subprocess.Process:
        processes.append(await create("sleep", "600", **how))
        begun.set()
        return processes[0]

    monkeypatch.setattr(module.asyncio, "create_subprocess_exec", instead)

    async def scenario(stage: Stage) -> None:
        await stage.order("check", check_numbers=pb.CheckNumbers(deadline_s=60.0))
        await begun.wait()
        await stage.kill()
        assert stage.answers() == {"check": False, "kill": True}
        assert processes[0].returncode == -9

    play(tmp_path, scenario)


def test_a_kill_of_an_older_attempt_leaves_a_launch_alone(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        await stage.launch(attempt=5)
        await stage.kill()
        await stage.answered("launch")
        assert stage.answers() == {"launch": True, "kill": True}
        assert stage.agent._ranks.alive == [0, 1]

    play(tmp_path, scenario)


def test_a_program_that_starts_while_its_launch_is_cancelled_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, second = tmp_path / "gate", asyncio.Event()
    os.mkfifo(gate)
    started: list[int] = []

    async def scenario(stage: Stage) -> None:
        loop = asyncio.get_running_loop()

        def spawn(args: list[str], _environment: dict[str, str], _log: Path) -> int:
            if len(started) == 1:
                loop.call_soon_threadsafe(second.set)
                gate.read_bytes()  # until the test opens it
            started.append(subprocess.Popen(args).pid)
            return started[-1]

        monkeypatch.setattr(ranks_module, "spawn", spawn)
        await stage.launch()
        await second.wait()
        await stage.agent._handle_command(KILL)
        await asyncio.sleep(0)
        await asyncio.to_thread(gate.write_bytes, b"")
        assert (await stage.answered("kill")).ok
        assert len(started) == 2
        while any(process_state(pid) not in ("", "Z") for pid in started):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert stage.agent._ranks.alive == []
        await stage.launch(name="late")  # an old order that comes late
        refused = await stage.answered("late")
        assert not refused.ok
        assert "attempt 4 is over" in refused.reason

    play(tmp_path, scenario)


def test_the_time_that_a_kill_waits_is_part_of_its_deadline(tmp_path: Path) -> None:
    async def scenario(stage: Stage) -> None:
        deadlines: list[float] = []

        async def kill(_attempt: int, deadline_s: float) -> list[int]:
            deadlines.append(deadline_s)
            return []

        stage.agent._ranks.kill = kill  # type: ignore[method-assign]
        now = 100.0
        loop = asyncio.get_running_loop()
        await stage.agent._order.acquire()
        loop.time, time = lambda: now, loop.time  # type: ignore[method-assign]
        try:
            await stage.agent._handle_command(KILL)
            await asyncio.sleep(0)
            now = 104.0
            stage.agent._order.release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        finally:
            loop.time = time  # type: ignore[method-assign]
        await stage.answered("kill")
        assert deadlines == [6.0]

    play(tmp_path, scenario)
