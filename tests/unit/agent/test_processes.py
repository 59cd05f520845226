"""Child processes: how their ends are seen, and what is left of those that nobody waits for."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from megascale.agent import stacks
from megascale.agent.processes import Child, Exit, kill_all, process_state
from megascale.agent.stacks import stack_of


def spawn(*command: str) -> int:
    return os.posix_spawn(command[0], command, os.environ)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30.0):
            await scenario()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("command", "exit_"),
    [
        (("/bin/true",), Exit(0, None)),
        (("/bin/sh", "-c", "exit 76"), Exit(76, None)),
        (("/bin/sh", "-c", "kill -SEGV $$"), Exit(None, signal.SIGSEGV)),
    ],
)
def test_the_end_of_a_child_is_seen_with_its_code_or_signal(command: tuple[str, ...], exit_: Exit) -> None:
    async def scenario() -> None:
        seen: list[tuple[Child, Exit]] = []
        child = Child(spawn(*command), lambda *end: seen.append(end))
        child.watch()
        await child.ended.wait()
        assert seen == [(child, exit_)]
        assert not child.killed
        assert process_state(child.pid) == ""

    play(scenario)


def test_an_exit_that_nobody_has_seen_yet_when_the_kill_comes_is_not_the_agents_own() -> None:
    async def scenario() -> None:
        seen: list[Exit] = []
        child = Child(spawn("/bin/sh", "-c", "kill -KILL $$"), lambda _child, how: seen.append(how))
        child.watch()
        while process_state(child.pid) != "Z":  # the event loop is held: it does not see the exit
            pass
        assert await kill_all([child], 10.0) == []
        assert seen == [Exit(None, signal.SIGKILL)]
        assert not child.killed

    play(scenario)


def test_a_kill_is_known_to_be_the_agents_own_and_may_come_twice() -> None:
    async def scenario() -> None:
        seen: list[Exit] = []
        child = Child(spawn("/bin/sleep", "60"), lambda _child, how: seen.append(how))
        child.watch()
        assert process_state(child.pid) in ("S", "R")
        assert await kill_all([child], 10.0) == []
        assert child.killed
        assert seen == [Exit(None, signal.SIGKILL)]
        assert await kill_all([child], 0.0) == []
        assert await kill_all([], 0.0) == []

    play(scenario)


def test_a_child_that_somebody_else_reaped_has_ended_with_0() -> None:
    async def scenario() -> None:
        seen: list[Exit] = []
        pid = spawn("/bin/sh", "-c", "exit 3")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
        child = Child(pid, lambda _child, how: seen.append(how))
        child.watch()
        os.waitpid(pid, 0)  # noqa: ASYNC222
        await child.ended.wait()
        assert seen == [Exit(0, None)]

    play(scenario)


def test_what_does_not_die_in_time_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        quick, stuck = (Child(spawn("/bin/sleep", "60"), lambda *_: None) for _ in range(2))
        for child in (quick, stuck):
            child.watch()
        with monkeypatch.context() as patch:
            patch.setattr(Child, "kill", lambda self: kill(self) if self is quick else None)
            assert await kill_all([quick, stuck], 0.2) == [stuck]
        assert await kill_all([quick, stuck], 10.0) == []

    kill = Child.kill
    play(scenario)


def test_a_process_that_does_not_exist_has_no_state() -> None:
    assert process_state(2**22 + 1) == ""
    assert process_state(os.getpid()) == "R"


PROGRAM = """
import os, sys, time
from megascale.prctl import become_subreaper
become_subreaper()
me = os.getpid()
if os.fork() == 0:
    if os.fork() == 0:
        while os.getppid() != me: time.sleep(0.01)
        os._exit(7)
    os._exit(0)
codes = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2))
sys.exit(codes != [0, 7])
"""


def test_orphans_become_children_of_a_subreaper() -> None:
    assert subprocess.run([sys.executable, "-c", PROGRAM], timeout=60, check=False).returncode == 0


def test_a_process_dies_with_its_parent() -> None:
    program = (
        "import os, signal, sys\n"
        "from megascale.prctl import die_with_parent\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    die_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "    signal.pause()\n"
        "sys.stdin.read()\n"
        "os._exit(0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        assert select.select([child], [], [], 0.0)[0] == []
        parent.communicate()
    assert select.select([child], [], [], 20.0)[0] == [child]
    os.close(child)


THREADS = '[{"thread_name": "x"}, {"thread_name": "MainThread", "frames": [%s]}]'
FRAME = '{"name": "step", "short_filename": "train.py", "line": 7}'


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (f"echo '{THREADS % FRAME}'", ["step (train.py:7)"]),
        (f"echo '{THREADS % ', '.join([FRAME] * 20)}'", ["step (train.py:7)"] * 12),
        ("echo '[]'", []),
        ("echo nonsense", ["no stack: what py-spy printed cannot be read: JSONDecodeError"]),
        ("echo '[{\"frames\": [{}]}]'", ["no stack: what py-spy printed cannot be read: KeyError('name')"]),
        ("echo denied >&2; exit 1", ["no stack: denied"]),
        ("printf 'caf\\351\\n' >&2; exit 1", ["no stack: caf\ufffd"]),
        ("sleep 60", ["no stack: py-spy did not answer in 0.2 s"]),
    ],
)
def test_a_stack_or_one_line_saying_why_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, found: list[str]
) -> None:
    monkeypatch.setattr(stacks, "_TIMEOUT_S", 0.2 if script.startswith("sleep") else 10.0)
    program = tmp_path / "py-spy"
    program.write_text(f"#!/bin/sh\n{script}\n".replace("sleep 60", "exec sleep 60"))
    program.chmod(0o755)
    monkeypatch.setattr(stacks.shutil, "which", lambda *_args, **_named: str(program))
    stack = asyncio.run(stack_of(1))
    assert len(stack) == len(found)
    assert all(line.startswith(wanted) for line, wanted in zip(stack, found, strict=True))


def test_without_py_spy_or_with_one_that_cannot_be_started_there_is_no_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks.shutil, "which", lambda *_args, **_named: None)
    assert asyncio.run(stack_of(1)) == ["no stack: py-spy is not installed"]
    monkeypatch.setattr(stacks.shutil, "which", lambda *_args, **_named: str(tmp_path))
    (line,) = asyncio.run(stack_of(1))
    assert line.startswith(f"no stack: {tmp_path}: Permission denied")


def test_why_there_is_no_stack_is_told_in_200_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "py-spy"
    program.write_text(f"#!/bin/sh\necho '  {'x' * 300}' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(stacks.shutil, "which", lambda *_args, **_named: str(program))
    assert asyncio.run(stack_of(1)) == [f"no stack: {'x' * 200}"]


def test_py_spy_beside_the_interpreter_comes_before_that_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("beside", "path"):
        program = tmp_path / place / "py-spy"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho {place} >&2\nexit 1\n")
        program.chmod(0o755)
    monkeypatch.setattr(stacks.sys, "executable", str(tmp_path / "beside" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"), prepend=os.pathsep)
    assert asyncio.run(stack_of(1)) == ["no stack: beside"]
    (tmp_path / "beside" / "py-spy").unlink()
    assert asyncio.run(stack_of(1)) == ["no stack: path"]
