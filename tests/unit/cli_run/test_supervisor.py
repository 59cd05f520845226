"""The supervisor of a run: drivers that end, a folder that goes, watchers, and what is killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megascale.cli.run_folder import RunLock, claim
from megascale.cli.supervisor import Supervisor
from megascale.errors import InputError, JobFailedError, UnreachableError
from megascale.fleet.agents import write_agent
from megascale.observe.rundir import RunDir


class Lines:
    """A view that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, _document: dict[str, Any]) -> None: ...

    def summary(self, _document: dict[str, Any]) -> None: ...

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_error: object) -> None: ...


class Dying(Supervisor):
    """Drivers that kill themselves after their connection broke: as a killed process does for a moment."""

    lives = 0

    def _start_driver(self) -> None:
        self.lives -= 1
        code = "import os, sys; sys.stdin.read(); os.kill(os.getpid(), 9)"
        self._driver = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        with (self._run.root / "logs" / "driver.log").open("a") as log:
            log.write("out of memory\n")

    async def _watch(self) -> bool:
        assert self._driver is not None
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        if self.lives == 0:
            self._driver.wait()
        return self.lives == 0


class Watching(Supervisor):
    """Watches drivers of another run; `lives` is what each look finds, the last for ever."""

    def __init__(self, run: RunDir, view: Lines, lock: RunLock, *lives: bool) -> None:
        super().__init__(run, view, lock)
        self.lives = list(lives)
        self.ends_after = 10_000
        self.watched = 0
        self.looked = asyncio.Event()

    def driver_lives(self) -> bool:
        return self.lives.pop(0) if len(self.lives) > 1 else self.lives[0]

    async def _watch(self) -> bool:
        self.watched += 1
        self.looked.set()
        return self.watched > self.ends_after


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    (tmp_path / "logs").mkdir()
    return RunDir(tmp_path)


@pytest.fixture
def lock(run: RunDir) -> Iterator[RunLock]:
    """The lock as its owner has it."""
    with claim(run) as owned:
        yield owned


@pytest.fixture
def sleepers() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts processes that lead their own session and wait for ever."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        code = "import time; time.sleep(600)"
        started.append(subprocess.Popen([sys.executable, "-c", code], start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_driver_that_dies_after_its_connection_is_told_of(run: RunDir, lock: RunLock) -> None:
    view = Lines()
    dying = Dying(run, view, lock)
    dying.lives = 2
    asyncio.run(dying._follow_own())
    assert view.notes == ["the driver was killed by SIGKILL; starting the next one, training goes on"]


def test_drivers_that_die_in_a_row_end_the_run(run: RunDir, lock: RunLock) -> None:
    dying = Dying(run, Lines(), lock)
    dying.lives = 20
    with pytest.raises(JobFailedError, match=r"died 5 times in a row:\nout of memory"):
        asyncio.run(dying._follow_own())


def test_a_removed_folder_ends_the_run_and_its_processes(
    run: RunDir, lock: RunLock, sleepers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    code = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); print(); time.sleep(600)"

    class Deaf(Supervisor):
        def _start_driver(self) -> None:
            self._driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            assert self._driver.stdout is not None
            self._driver.stdout.readline()
            shutil.rmtree(run.root)

        async def _watch(self) -> bool:
            return False

    deaf = Deaf(run, Lines(), lock)
    with pytest.raises(JobFailedError, match="was removed while the job ran"):
        asyncio.run(deaf.supervise())
    assert deaf._driver is not None
    assert deaf._driver.returncode == -9
    assert deaf._driver.stdout is not None
    assert deaf._driver.stdout.read() == b""  # its child, which shares the pipe, has ended too


def test_killing_everything_spares_a_process_that_got_the_id_of_an_agent(
    run: RunDir, lock: RunLock, sleepers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    agent, stranger = sleepers(), sleepers()
    run.agents.mkdir()
    write_agent(run, "node-0", agent.pid)
    (run.agents / "node-1.json").write_text(json.dumps({"pid": stranger.pid, "startedAt": 1.0}))
    (run.agents / "node-2.json").write_text("null")
    Supervisor(run, Lines(), lock)._kill_everything()
    assert agent.wait(10) == -9
    assert stranger.poll() is None


def test_killing_everything_includes_a_driver_that_an_earlier_run_started(
    run: RunDir, lock: RunLock, sleepers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    driver = sleepers()
    supervisor = Supervisor(run, Lines(), lock)
    supervisor._take(driver.pid, {"state": "running"})
    supervisor._kill_everything()
    assert driver.wait(10) == -9


def test_survivors_are_named_when_no_driver_can_run(
    run: RunDir, lock: RunLock, sleepers: Callable[[], subprocess.Popen[bytes]]
) -> None:
    class Refused(Supervisor):
        async def _follow_own(self) -> None:
            raise InputError("the driver cannot run this job")

    run.agents.mkdir()
    write_agent(run, "node-0", sleepers().pid)
    view = Lines()
    with pytest.raises(InputError):
        asyncio.run(Refused(run, view, lock).supervise())
    assert view.notes[0].startswith("node-0 still running: they save a checkpoint and leave after")


def test_a_watcher_goes_on_when_the_owner_starts_the_next_driver(run: RunDir, lock: RunLock) -> None:
    view = Lines()
    with claim(run) as watcher:
        watching = Watching(run, view, watcher, False, False, False, True)
        watching.ends_after = 1
        asyncio.run(watching._follow_other())
    assert view.notes == ["the driver was replaced; attached to the next one"]


def test_a_watcher_ends_when_owner_and_driver_are_gone(run: RunDir) -> None:
    with run.supervisor_lock.open("w") as file:
        lock = RunLock(run.supervisor_lock, file.fileno(), owned=False)
        watching = Watching(run, Lines(), lock, False)
        with pytest.raises(UnreachableError, match="has ended, and no driver runs; run the job again"):
            asyncio.run(watching._follow_other())
        run.summary_file.write_text("{}")
        asyncio.run(watching._follow_other())


def test_detaching_says_how_to_stop_the_job(run: RunDir, lock: RunLock) -> None:
    view = Lines()
    with claim(run) as watcher:
        watching = Watching(run, view, watcher, True)
        watching._last = {"state": "running", "step": 3}

        async def interrupt() -> tuple[dict[str, Any], bool]:
            following = asyncio.ensure_future(watching.supervise())
            await watching.looked.wait()
            os.kill(os.getpid(), signal.SIGINT)
            return await following

        summary, interrupted = asyncio.run(interrupt())
    assert interrupted
    assert summary == {"state": "running", "step": 3}
    assert view.notes[-1] == (
        "detached; the job goes on; to stop it, press Ctrl-C in the `megascale run` that owns it, "
        f"or: kill -INT {os.getpid()}"
    )
