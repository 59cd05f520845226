"""Ends everything that ranks started, whatever those processes did to their session, title or environment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from megascale.prctl import is_subreaper

_AGAIN_S: Final = 0.05
_ROUNDS: Final = 40


class Strays:
    """Finds the descendants of this process that no part of the agent started.

    The agent is a child subreaper: a descendant whose parent ends becomes the agent's child, however it
    detached. So all children that the agent does not know are strays, and so is all that they started.

    Args:
        own: pids of the children that belong to the agent, such as its zygote and the store.
    """

    def __init__(self, own: Callable[[], Collection[int]]) -> None:
        self._own = own

    def kill(self) -> int:
        """SIGKILL all strays, those that appear meanwhile too; returns how many there were.

        Blocks until no stray is left that runs, at most about two seconds: a process that the kernel holds
        ends later. A child is not killed when it is seen first, since the agent may be about to note a helper
        that it has just started. Does nothing in a process that adopts no orphans.
        """
        killed: set[int] = set()
        seen = self._running() if is_subreaper() else set()
        for _ in range(_ROUNDS):
            if not seen:
                break
            time.sleep(_AGAIN_S)
            found = self._running()
            for pid in found & seen:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            killed |= found & seen
            seen = found
        return len(killed)

    def _running(self) -> set[int]:
        children = _children_by_parent()
        own = set(self._own())
        found: set[int] = set()
        waiting = [pid for pid in children.get(os.getpid(), ()) if pid not in own]
        while waiting:
            pid = waiting.pop()
            found.add(pid)
            waiting += children.get(pid, ())
        return found


def _children_by_parent() -> dict[int, list[int]]:
    """Parent -> children of all processes that are no zombies."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                children.setdefault(int(fields[1]), []).append(int(process.name))
    return children
