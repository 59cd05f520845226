"""Which zombies an agent reaps: those that nobody waited for in a second."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megascale.agent import reaper as module
from megascale.agent.reaper import Reaper, _zombies


class Loop:
    """An event loop of which only the timer of the reaper is left."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def call_later(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> str:
        self.timers.append((delay_s, call, arguments))
        return "a timer"

    def fire(self) -> float:
        delay_s, call, arguments = self.timers.pop(0)
        call(*arguments)
        return delay_s


class Stage:
    """Zombies as the test says, and the pids that were reaped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.zombies: set[int] = set()
        self.reaped: list[tuple[int, int]] = []
        self.loop, self.reaper = Loop(), Reaper()
        monkeypatch.setattr(module.asyncio, "get_running_loop", lambda: self.loop)
        monkeypatch.setattr(module, "_zombies", lambda: set(self.zombies))
        monkeypatch.setattr(module.os, "waitpid", self.wait)

    def wait(self, pid: int, flags: int) -> tuple[int, int]:
        self.reaped.append((pid, flags))
        if pid == 13:
            raise ChildProcessError
        return pid, 0


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_a_zombie_that_is_left_after_a_second_is_reaped(stage: Stage) -> None:
    stage.zombies = {7, 8, 13}
    stage.reaper._on_death()
    stage.reaper._on_death()
    assert len(stage.loop.timers) == 1
    stage.zombies = {8, 13}  # somebody waited for 7
    assert stage.loop.fire() == 1.0
    assert sorted(stage.reaped) == [(8, os.WNOHANG), (13, os.WNOHANG)]
    assert stage.loop.timers == []


def test_what_died_meanwhile_is_looked_at_a_second_later(stage: Stage) -> None:
    stage.zombies = {7}
    stage.reaper._on_death()
    stage.zombies = {7, 8}
    stage.loop.fire()
    assert [pid for pid, _ in stage.reaped] == [7]
    stage.zombies = {8}
    stage.loop.fire()
    assert [pid for pid, _ in stage.reaped] == [7, 8]
    assert stage.loop.timers == []


def test_a_reaper_that_was_closed_reaps_nothing() -> None:
    async def scenario() -> None:
        reaper = Reaper()
        reaper.close()
        reaper.watch()
        reaper._on_death()
        timer = reaper._timer
        assert timer is not None
        reaper.close()
        assert timer.cancelled()
        assert not asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    asyncio.run(scenario())


def test_a_thread_that_ends_while_its_children_are_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for thread, children in (("1", "7 8 "), ("3", "9 ")):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "children").write_text(children)
    (tmp_path / "2" / "children").mkdir(parents=True)  # a folder: to read it is an OSError
    monkeypatch.setattr(module, "Path", {"/proc/self/task": tmp_path}.get)
    monkeypatch.setattr(module, "process_state", {7: "Z", 8: "S", 9: "Z"}.get)
    assert _zombies() == {7, 9}


def test_only_children_of_this_process_that_have_ended_are_zombies() -> None:
    running = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)
    ended = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    try:
        found = _zombies()
    finally:
        os.kill(running, signal.SIGKILL)
        for pid in (running, ended):
            os.waitpid(pid, 0)
    assert ended in found
    assert running not in found
    assert ended not in _zombies()
