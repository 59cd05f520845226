"""The agent's side of the zygote, against programs that play one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from megascale.agent import zygote_client as module
from megascale.agent.zygote_client import Zygote, ZygoteError, code_digest

ECHO = """
import json, os, socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
connection.send(json.dumps({"ready": True}).encode())
while raw := connection.recv(1 << 20):
    request = json.loads(raw)
    answer = {"pid": os.getpid(), "port": 29, "request": request}
    if request.get("host") == "refuse":
        answer = {"error": "the zygote has 3 threads"}
    if request.get("host") == "die":
        break
    if request.get("host") == "hang":
        continue
    connection.send(json.dumps(answer).encode())
"""


class Stage:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.program = folder / "zygote.py"
        self.program.write_text(ECHO)
        self.commands: list[tuple[str, ...]] = []
        start = asyncio.create_subprocess_exec

        async def instead(python: str, option: str, name: str, *arguments: str, **how: Any) -> Any:
            assert (python, option) == (sys.executable, "-m")
            self.commands.append((name, *arguments[1:]))
            self.environment = how["env"]
            return await start(python, str(self.program), *arguments, **how)

        monkeypatch.setattr(module.asyncio, "create_subprocess_exec", instead)
        self.digest = "one"
        monkeypatch.setattr(module, "code_digest", lambda: self.digest)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def play(scenario: Callable[[Zygote], Awaitable[None]], *, engine: bool = False) -> None:
    async def main() -> None:
        zygote = Zygote(engine=engine)
        async with asyncio.timeout(60.0):
            try:
                await scenario(zygote)
            finally:
                await zygote.close()

    asyncio.run(main())


def test_a_zygote_is_started_once_and_asked_in_order(stage: Stage) -> None:
    async def scenario(zygote: Zygote) -> None:
        await zygote.ensure()
        found = await asyncio.gather(*(zygote.fork_store(f"host-{number}") for number in range(3)))
        assert {port for _, port in found} == {29}
        assert len({pid for pid, _ in found}) == 1
        assert stage.commands == [("megascale.agent.zygote", "store")]
        assert stage.environment["OMP_NUM_THREADS"] == "1"
        answer = await zygote._ask({"op": "x"})
        assert answer["request"] == {"op": "x", "agentPid": os.getpid()}

    play(scenario)


def test_one_for_ranks_is_told_so(stage: Stage) -> None:
    async def scenario(zygote: Zygote) -> None:
        await zygote.ensure()
        assert stage.commands == [("megascale.agent.zygote",)]

    play(scenario, engine=True)


def test_changed_code_gets_a_new_zygote(stage: Stage) -> None:
    async def scenario(zygote: Zygote) -> None:
        first, _ = await zygote.fork_store("host")
        stage.digest = "two"
        second, _ = await zygote.fork_store("host")
        assert first != second
        assert len(stage.commands) == 2

    play(scenario)


def test_a_refusal_is_an_error_and_the_zygote_stays(stage: Stage) -> None:
    async def scenario(zygote: Zygote) -> None:
        with pytest.raises(ZygoteError, match="the zygote has 3 threads"):
            await zygote.fork_store("refuse")
        await zygote.fork_store("host")
        assert len(stage.commands) == 1

    play(scenario)


def test_a_zygote_that_died_is_said_and_replaced(stage: Stage) -> None:
    async def scenario(zygote: Zygote) -> None:
        with pytest.raises(ZygoteError, match="the zygote died"):
            await zygote.fork_store("die")
        await zygote.fork_store("host")
        assert len(stage.commands) == 2

    play(scenario)


def test_a_zygote_that_does_not_answer_is_ended(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REPLY_TIMEOUT_S", 0.2)

    async def scenario(zygote: Zygote) -> None:
        with pytest.raises(ZygoteError, match=r"the zygote did not answer in 0\.2 s"):
            await zygote.fork_store("hang")
        assert zygote._process is None
        await zygote.fork_store("host")

    play(scenario)


def test_one_that_does_not_come_up_is_said(stage: Stage) -> None:
    stage.program.write_text("raise SystemExit(1)")

    async def scenario(zygote: Zygote) -> None:
        with pytest.raises(ZygoteError, match="the zygote died; its output is in the agent's log"):
            await zygote.ensure()

    play(scenario)


def test_without_a_socket_there_is_nobody_to_ask() -> None:
    async def scenario(zygote: Zygote) -> None:
        for call in (zygote._exchange({}), zygote._receive(1.0)):
            with pytest.raises(ZygoteError, match="is not running"):
                await call

    play(scenario)


def test_the_digest_changes_with_any_source_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    package = tmp_path / "__init__.py"
    package.write_text("")
    monkeypatch.setattr(module.megascale, "__file__", str(package))
    first = code_digest()
    assert code_digest() == first
    (tmp_path / "notes.txt").write_text("no source")
    assert code_digest() == first
    (tmp_path / "sub" / "a.py").write_text("x = 1")
    second = code_digest()
    assert second != first
    os.utime(tmp_path / "sub" / "a.py", (1.0, 1.0))
    assert code_digest() != second
    assert cast(Any, module.megascale).__file__ == str(package)
