"""A fleet whose nodes are process groups on this machine, each with one agent in its own session.

Agents outlive a driver: `agents/<node>.json` holds their pid and start time, and the next driver adopts
those that still run. `fleet.json` holds the nodes of the newest requests: one that is made again after a
driver died starts only what its predecessor did not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from megascale.checkpoint.snapshot_folders import remove_folders
from megascale.fleet.agents import open_agent, write_agent
from megascale.fleet.base import FleetRefusedError, Health, SlotEvent
from megascale.observe.rundir import RunDir, write_atomically
from megascale.offload import StorageThread

_TERM_S: Final = 5.0
_KILL_S: Final = 10.0
_REQUESTS_KEPT: Final = 64
_DEAD_STATES: Final = {"T": "stopped", "t": "stopped by a debugger", "Z": "a zombie", "X": "dead"}


@dataclass(slots=True, eq=False)
class _Slot:
    node: str
    pid: int
    pidfd: int
    process: subprocess.Popen[bytes] | None
    released: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class LocalFleet:
    """Implements `Fleet` with local processes.

    Args:
        limit: returns how many nodes may run at once; it is asked at every request, since it may change.
    """

    def __init__(self, run: RunDir, limit: Callable[[], int]) -> None:
        self._run, self._limit = run, limit
        self._slots: dict[str, _Slot] = {}
        self._requests: dict[str, list[str]] = {}
        self._files = StorageThread("the run folder")
        # One start at a time, so that the limit holds and names are unique, and none during `close`.
        self._starting = asyncio.Lock()
        self._on_event: Callable[[SlotEvent], None] = lambda _event: None

    async def start(self, on_event: Callable[[SlotEvent], None]) -> None:
        self._on_event = on_event
        for slot in await self._files.call(self._find):
            self._watch(slot)
        keep = tuple(self._slots)
        await asyncio.to_thread(remove_folders, self._run.root, keep=keep)

    def _find(self) -> list[_Slot]:
        """The agents that an earlier driver left running; also reads the requests that it carried out."""
        self._requests = _read_requests(self._run.fleet_file)
        self._run.agents.mkdir(parents=True, exist_ok=True)
        found = [open_agent(path) for path in sorted(self._run.agents.glob("*.json"))]
        return [_Slot(agent.node, agent.pid, agent.pidfd, None) for agent in found if agent is not None]

    async def acquire(self, effect_id: str, count: int, avoid: tuple[str, ...]) -> None:
        async with self._starting:
            if effect_id not in self._requests:
                self._check_limit(count)
                await self._remember(effect_id, await self._files.call(lambda: self._new_names(count, avoid)))
            for node in self._requests[effect_id]:
                if node not in self._slots:
                    self._watch(await self._files.call(functools.partial(self._spawn, node)))

    def _check_limit(self, count: int) -> None:
        running = sum(1 for slot in self._slots.values() if not slot.gone.is_set())
        limit = self._limit()
        if running + count > limit:
            raise FleetRefusedError(
                f"{running} local nodes run, {count} more would pass the limit of {limit}"
            )

    def _new_names(self, count: int, avoid: tuple[str, ...]) -> list[str]:
        used = {path.stem for path in self._run.agents.glob("*.json")}.union(avoid, *self._requests.values())
        unused = (name for number in itertools.count() if (name := f"node-{number}") not in used)
        return list(itertools.islice(unused, count))

    async def _remember(self, effect_id: str, nodes: list[str]) -> None:
        """Note which nodes a request is about, so that a successor of this driver does not repeat it."""
        self._requests[effect_id] = nodes
        while len(self._requests) > _REQUESTS_KEPT:
            del self._requests[next(iter(self._requests))]
        text = json.dumps(self._requests)
        await self._files.call(lambda: write_atomically(self._run.fleet_file, text))

    def _spawn(self, node: str) -> _Slot:
        self._run.renew_agent_token(node)
        log = self._run.root / "logs" / f"agent-{node}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", "megascale.agent", str(self._run.root), node],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            raise FleetRefusedError(f"cannot start an agent: {error}") from error
        write_agent(self._run, node, process.pid)
        return _Slot(node, process.pid, os.pidfd_open(process.pid), process)

    def _watch(self, slot: _Slot) -> None:
        self._slots[slot.node] = slot
        asyncio.get_running_loop().add_reader(slot.pidfd, self._ended, slot)

    def _ended(self, slot: _Slot) -> None:
        asyncio.get_running_loop().remove_reader(slot.pidfd)
        os.close(slot.pidfd)
        code = slot.process.wait() if slot.process else None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(slot.pid, signal.SIGKILL)
        slot.gone.set()
        if not slot.released:
            clean = functools.partial(remove_folders, self._run.root, only=slot.node)
            asyncio.get_running_loop().run_in_executor(None, clean)
            how = f" ({_exit_words(code)})" if code is not None else ""
            self._on_event(SlotEvent(slot.node, f"the agent of {slot.node} ended{how}", time.time()))

    async def release(self, node: str) -> None:
        await self._end(node)
        await self._files.call(lambda: self._run.agent_token_file(node).unlink(missing_ok=True))
        await asyncio.to_thread(remove_folders, self._run.root, only=node)

    async def _end(self, node: str) -> None:
        slot = self._slots.get(node)
        if slot is None or slot.gone.is_set():
            return
        slot.released = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.pid, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(slot.gone.wait(), _TERM_S)
        if not slot.gone.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(slot.pid, signal.SIGKILL)
            try:
                await asyncio.wait_for(slot.gone.wait(), _KILL_S)
            except TimeoutError as error:
                raise FleetRefusedError(
                    f"the agent of {node} (process {slot.pid}) has not ended {_KILL_S:g} s after SIGKILL: "
                    "it is stuck in the kernel"
                ) from error

    async def restart(self, effect_id: str, node: str) -> None:
        async with self._starting:
            if effect_id in self._requests:
                return
            await self._end(node)
            self._watch(await self._files.call(lambda: self._spawn(node)))
            await self._remember(effect_id, [node])

    async def quarantine(self, node: str, incident: str) -> None:
        raise FleetRefusedError(f"local nodes cannot be quarantined ({node}, {incident})")

    def labels(self, node: str) -> dict[str, str]:  # noqa: ARG002 - one machine has no network
        return {}

    async def probe(self, node: str) -> Health:
        slot = self._slots.get(node)
        if slot is None or slot.gone.is_set():
            return Health(healthy=False, detail="its agent is gone")
        try:
            stat = Path(f"/proc/{slot.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return Health(healthy=False, detail="its agent is gone")
        state = stat.rpartition(")")[2].split()[0]
        if state in _DEAD_STATES:
            return Health(healthy=False, detail=f"its agent is {_DEAD_STATES[state]}")
        return Health(healthy=None, detail="its agent runs but does not answer")

    async def close(self) -> None:
        async with self._starting:
            ends = await asyncio.gather(
                *(self.release(node) for node in list(self._slots)), return_exceptions=True
            )
            await self._files.call(self._forget)
            self._requests = {}
        await asyncio.to_thread(remove_folders, self._run.root)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    def _forget(self) -> None:
        for path in self._run.agents.glob("*.json"):
            path.unlink(missing_ok=True)
        self._run.fleet_file.unlink(missing_ok=True)


def _read_requests(path: Path) -> dict[str, list[str]]:
    """Return effect id -> nodes; {} if there are none, or the file is damaged."""
    try:
        found = json.loads(path.read_text())
        return {str(effect_id): [str(node) for node in nodes] for effect_id, nodes in found.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def _exit_words(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
