"""`agents/<node>.json`: which process is the agent of a local node.

A process id is reused after a reboot or when ids wrap around, so the file has the start time of the process
too, and both must match before anybody adopts or signals it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from megascale.observe.rundir import RunDir, write_atomically

_SAME_START_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class AgentProcess:
    """The process of a node's agent, which leads its process group.

    Attributes:
        pidfd: refers to this process even after its id was reused; the holder of the object closes it.
    """

    node: str
    pid: int
    pidfd: int


def write_agent(run: RunDir, node: str, pid: int) -> None:
    """Store id and start time of the node's agent.

    Raises:
        psutil.NoSuchProcess: it has ended, and its parent has reaped it.
    """
    identity = {"pid": pid, "startedAt": psutil.Process(pid).create_time()}
    write_atomically(run.agents / f"{node}.json", json.dumps(identity))


def open_agent(path: Path) -> AgentProcess | None:
    """Return the process that the file names; None if it has ended or the file is damaged."""
    try:
        data = json.loads(path.read_text())
        pid, started_s = int(data["pid"]), float(data["startedAt"])
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    try:
        same = abs(psutil.Process(pid).create_time() - started_s) < _SAME_START_S
    except psutil.NoSuchProcess:
        same = False
    if same:
        return AgentProcess(path.stem, pid, pidfd)
    os.close(pidfd)
    return None


def running_agents(run: RunDir) -> Iterator[AgentProcess]:
    """Yield the agents of the run that have not ended; each pidfd is closed after its turn."""
    for path in sorted(run.agents.glob("*.json")):
        agent = open_agent(path)
        if agent is None:
            continue
        try:
            if psutil.Process(agent.pid).status() != psutil.STATUS_ZOMBIE:
                yield agent
        except psutil.NoSuchProcess:
            continue
        finally:
            os.close(agent.pidfd)
