"""Rank processes: started, watched through a pidfd, killed, reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


def process_state(pid: int) -> str:
    """The state letter of /proc/PID/stat, "" when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


@dataclass(slots=True)
class Exit:
    """How a process ended: one of `code` and `signal` is set."""

    code: int | None
    signal: int | None


@dataclass(slots=True, eq=False)
class Child:
    """A process that this one reaps. `ended` is set, once, when it was reaped."""

    pid: int
    on_exit: Callable[[Child, Exit], None]
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    killed: bool = False
    _pidfd: int = -1

    def watch(self) -> None:
        """Begin watching; `on_exit` is called from the event loop as soon as the kernel reports the end."""
        self._pidfd = os.pidfd_open(self.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def kill(self) -> None:
        """SIGKILL; the exit is then this agent's own doing."""
        self.killed = True
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

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


async def kill_all(children: list[Child], deadline_s: float) -> list[Child]:
    """SIGKILL all and wait until they are reaped; returns those that were not in `deadline_s`."""
    for child in children:
        child.kill()
    waits = [asyncio.ensure_future(child.ended.wait()) for child in children]
    if waits:
        _, late = await asyncio.wait(waits, timeout=deadline_s)
        for wait in late:
            wait.cancel()
    return [child for child in children if not child.ended.is_set()]
