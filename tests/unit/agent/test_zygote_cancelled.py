"""Callers of the zygote that are cancelled: what was forked for them ends, and the next caller is served."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from megascale.agent import zygote_client as module
from megascale.agent.processes import process_state, settled
from megascale.agent.zygote_client import Zygote

PROGRAM = """
import json, os, pathlib, socket, subprocess, sys, time
folder = pathlib.Path(sys.argv[0]).parent
connection = socket.socket(fileno=int(sys.argv[1]))
if (folder / "slow-start").exists():
    with open(folder / "starting", "w"):
        pass
    os.open(folder / "go", os.O_RDONLY)
connection.send(json.dumps({"ready": True}).encode())
while raw := connection.recv(1 << 20):
    host = json.loads(raw)["host"]
    if host == "hang":
        os.open(folder / "asked", os.O_WRONLY)
        time.sleep(600)
    child = os.fork()
    if child == 0:
        os.execvp("sleep", ["sleep", "600"])
    if host == "slow":
        os.open(folder / "asked", os.O_WRONLY)
        os.open(folder / "go", os.O_RDONLY)
    connection.send(json.dumps({"pid": child, "port": 29}).encode())
"""


class Stage:
    """A zygote that says that it was asked, and goes on, through pipes in `folder`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.program = folder / "zygote.py"
        self.program.write_text(PROGRAM)
        for name in ("asked", "go"):
            os.mkfifo(folder / name)
        self.starts = 0
        start = asyncio.create_subprocess_exec

        async def instead(python: str, _m: str, _name: str, *arguments: str, **how: Any) -> Any:
            self.starts += 1
            return await start(python, str(self.program), *arguments, **how)

        monkeypatch.setattr(module.asyncio, "create_subprocess_exec", instead)

    async def asked(self) -> None:
        os.close(await asyncio.to_thread(os.open, self.folder / "asked", os.O_RDONLY))

    async def go(self) -> None:
        os.close(await asyncio.to_thread(os.open, self.folder / "go", os.O_WRONLY))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def play(scenario: Callable[[Zygote], Awaitable[None]]) -> None:
    async def main() -> None:
        zygote = Zygote(engine=False)
        async with asyncio.timeout(60.0):
            try:
                await scenario(zygote)
            finally:
                await zygote.close()

    asyncio.run(main())


async def _forked(zygote: Zygote, host: str) -> int:
    pid, port = await zygote.fork_store(host)
    assert port == 29
    return pid


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)


def test_what_was_forked_for_a_cancelled_caller_is_killed_and_its_answer_is_not_anothers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    kill = os.kill
    monkeypatch.setattr(module.os, "kill", lambda pid, number: (killed.append(pid), kill(pid, number)))

    async def scenario(zygote: Zygote) -> None:
        asking = asyncio.create_task(_forked(zygote, "slow"))
        await stage.asked()
        asking.cancel()
        await asyncio.sleep(0)
        asking.cancel()  # whoever is impatient does not change it
        await stage.go()
        with pytest.raises(asyncio.CancelledError):
            await asking
        (first,) = killed
        while process_state(first) not in ("", "Z"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        second = await _forked(zygote, "quick")
        assert second != first
        assert stage.starts == 1
        _kill(second)

    play(scenario)


def test_a_zygote_that_does_not_answer_is_killed_soon_after_its_caller_was_cancelled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ABANDON_S", 0.1)

    async def scenario(zygote: Zygote) -> None:
        asking = asyncio.create_task(_forked(zygote, "hang"))
        await stage.asked()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asking, 10.0)
        _kill(await _forked(zygote, "quick"))
        assert stage.starts == 2

    play(scenario)


def test_a_zygote_whose_starter_was_cancelled_starts_and_serves(stage: Stage) -> None:
    (stage.folder / "slow-start").touch()

    async def scenario(zygote: Zygote) -> None:
        asking = asyncio.create_task(_forked(zygote, "quick"))
        while not (stage.folder / "starting").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        again = asyncio.create_task(_forked(zygote, "quick"))
        await stage.go()
        _kill(await again)
        assert stage.starts == 1

    play(scenario)


def test_a_zygote_that_is_starting_ends_with_its_owner(stage: Stage) -> None:
    (stage.folder / "slow-start").touch()

    async def scenario(zygote: Zygote) -> None:
        starting = asyncio.create_task(zygote.ensure())
        while not (stage.folder / "starting").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        starting.cancel()
        process = zygote._process
        assert process is not None
        await zygote.close()
        assert process.returncode == -9

    play(scenario)


def test_work_is_waited_for_at_most_as_long_as_asked() -> None:
    async def main() -> None:
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        assert not await settled(never, 0.01)
        never.set_result(None)
        assert await settled(never)

    asyncio.run(main())
