"""Reaps orphaned processes, which the agent inherits from its ranks as PID 1 or child subreaper."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from megascale.agent.processes import process_state

_PATIENCE_S: Final = 1.0


class Reaper:
    """Reaps children that are still zombies one second after they were first seen as such.

    Code that waits for its own child (rank, zygote, stack dump) reaps it within that second.
    """

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Start handling SIGCHLD."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._on_death)

    def close(self) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)
        if self._timer is not None:
            self._timer.cancel()

    def _on_death(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(_PATIENCE_S, self._look, _zombies())

    def _look(self, seen: set[int]) -> None:
        self._timer = None
        now = _zombies()
        for pid in seen & now:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if now - seen:
            self._on_death()


def _zombies() -> set[int]:
    children: set[int] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children |= {int(pid) for pid in path.read_text().split()}
    return {pid for pid in children if process_state(pid) == "Z"}
