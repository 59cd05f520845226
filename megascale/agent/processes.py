"""Watches child processes through pidfds, kills and reaps them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_HELPERS: Final[set[int]] = set()


@contextlib.contextmanager
def noted_as_helper(pid: int) -> Iterator[None]:
    """Count a child of this process as a part of the agent, not as something that a rank left behind."""
    _HELPERS.add(pid)
    try:
        yield
    finally:
        _HELPERS.discard(pid)


def helpers() -> frozenset[int]:
    """Return the pids of the agent's helpers that run."""
    return frozenset(_HELPERS)


def process_state(pid: int) -> str:
    """Return the state letter in /proc/PID/stat, "" if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


@dataclass(slots=True)
class Exit:
    """How a process ended: either its exit `code` or the `signal` that killed it is set."""

    code: int | None
    signal: int | None


@dataclass(slots=True, eq=False)
class Child:
    """A child process that this process reaps.

    Attributes:
        on_exit: called once, from the event loop, after the process was reaped.
        ended: set when the process was reaped.
        killed: whether `kill` was called while it ran.
    """

    pid: int
    on_exit: Callable[[Child, Exit], None]
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    killed: bool = False
    _pidfd: int = -1

    def watch(self) -> None:
        """Start watching; call once, after which the process is reaped as soon as it exits."""
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def kill(self) -> None:
        """Send SIGKILL and set `killed`, which marks the exit as caused by this agent.

        A process that has exited by itself and is not reaped yet is left alone: its exit is its own.
        """
        if self.ended.is_set() or self._has_exited():
            return
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _has_exited(self) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _reap(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if pid == 0:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.ended.set()
        signaled = os.WIFSIGNALED(status)
        code = None if signaled else os.waitstatus_to_exitcode(status)
        self.on_exit(self, Exit(code, os.WTERMSIG(status) if signaled else None))


async def settled(work: asyncio.Future[Any], timeout_s: float | None = None) -> bool:
    """Wait until `work` is done and return whether it is; goes on when the caller is cancelled.

    For the end of work that has to be known before a cancellation may be raised again; `timeout_s` or what
    `work` does bounds the wait.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    while not work.done():
        left_s = None if deadline is None else deadline - loop.time()
        if left_s is not None and left_s <= 0:
            break
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((work,), timeout=left_s)
    return work.done()


async def kill_all(children: list[Child], deadline_s: float) -> list[Child]:
    """SIGKILL all and wait until they are reaped; returns those not reaped within `deadline_s` seconds."""
    for child in children:
        child.kill()
    waits = [asyncio.ensure_future(child.ended.wait()) for child in children]
    if waits:
        _, late = await asyncio.wait(waits, timeout=deadline_s)
        for wait in late:
            wait.cancel()
    return [child for child in children if not child.ended.is_set()]
