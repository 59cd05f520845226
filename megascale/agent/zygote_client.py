"""The agent's client of the zygote: starts it, requests forks, and replaces it when the code has changed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

import megascale
from megascale.agent.processes import settled
from megascale.agent.zygote import MESSAGE_BYTES, write_launch
from megascale.engine.context import RankLaunch
from megascale.errors import MegascaleError

_START_TIMEOUT_S: Final = 300.0
_REPLY_TIMEOUT_S: Final = 30.0
_ABANDON_S: Final = 1.0
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


class ZygoteError(MegascaleError):
    """The zygote did not start, died, or refused to fork."""


class Zygote:
    """Manages one zygote process; requests are handled one at a time.

    A caller may be cancelled: what was forked for it is killed, and a zygote that is starting goes on to.

    Args:
        engine: whether the zygote imports the engine to fork ranks; else it uses less memory and can fork
            only stores.
    """

    def __init__(self, *, engine: bool) -> None:
        self._arguments = [] if engine else ["store"]
        self._process: asyncio.subprocess.Process | None = None
        self._starting: asyncio.Task[None] | None = None
        self._socket: socket.socket | None = None
        self._digest = ""
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The pid of the zygote, None if none was started."""
        return self._process.pid if self._process is not None else None

    async def ensure(self) -> None:
        """Start a zygote, or replace one that has imported an older version of the code.

        Raises:
            ZygoteError: it does not start.
        """
        async with self._lock:
            await self._ensure()

    async def fork_rank(self, launch: RankLaunch, log: Path) -> int:
        """Fork one rank, as a child of this process, and return its pid.

        The rank reads its launch from the file that `write_launch` leaves: messages to the zygote are
        limited by the kernel's socket buffer, to about 200 kB, and manifests are not.

        Raises:
            ZygoteError: the zygote cannot fork.
            OSError: the launch cannot be written.
        """
        request = {"op": "rank", "launch": str(write_launch(launch)), "log": str(log)}
        return int((await self._ask(request))["pid"])

    async def fork_store(self, host: str) -> tuple[int, int]:
        """Fork a store process listening on `host`; returns its pid and port; raises ZygoteError."""
        answer = await self._ask({"op": "store", "host": host})
        return int(answer["pid"]), int(answer["port"])

    async def close(self) -> None:
        """Kill the zygote; ranks and stores that it forked keep running."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait((self._starting,))
        await self._end()

    async def _end(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._lock:
            await self._ensure()
            exchange = asyncio.create_task(self._exchange({**request, "agentPid": os.getpid()}))
            try:
                answer = await asyncio.shield(exchange)
            except asyncio.CancelledError:
                await self._abandon(exchange)
                raise
        if "error" in answer:
            raise ZygoteError(str(answer["error"]))
        return answer

    async def _abandon(self, exchange: asyncio.Task[dict[str, Any]]) -> None:
        """Wait for an answer that nobody wants any more, and kill the process that it names.

        A zygote that does not answer within a second is killed: a process that waits for its permission to
        run ends with it.
        """
        if not await settled(exchange, _ABANDON_S) and self._process is not None:
            self._process.kill()
            await settled(exchange)
        with contextlib.suppress(ZygoteError, ProcessLookupError):
            answer = exchange.result()
            if "pid" in answer:
                os.kill(int(answer["pid"]), signal.SIGKILL)

    async def _ensure(self) -> None:
        if self._starting is not None and not self._starting.done():
            await asyncio.shield(self._starting)  # for a caller that was cancelled
        digest = code_digest()
        alive = self._process is not None and self._process.returncode is None
        if alive and digest == self._digest:
            return
        await self._end()
        self._digest = digest
        self._starting = asyncio.create_task(self._start())
        await asyncio.shield(self._starting)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        self._socket = ours
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "megascale.agent.zygote",
                str(theirs.fileno()),
                *self._arguments,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **_ENVIRONMENT},
            )
        await self._receive(_START_TIMEOUT_S)

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._socket is None:
            raise ZygoteError("the zygote is not running")
        await asyncio.get_running_loop().sock_sendall(self._socket, json.dumps(request).encode())
        return await self._receive(_REPLY_TIMEOUT_S)

    async def _receive(self, timeout_s: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        if self._socket is None:
            raise ZygoteError("the zygote is not running")
        try:
            raw = await asyncio.wait_for(loop.sock_recv(self._socket, MESSAGE_BYTES), timeout_s)
        except TimeoutError as error:
            await self._end()
            raise ZygoteError(f"the zygote did not answer in {timeout_s:g} s") from error
        if not raw:
            await self._end()
            raise ZygoteError("the zygote died; its output is in the agent's log")
        answer: dict[str, Any] = json.loads(raw)
        return answer


def code_digest() -> str:
    """Return a digest of the size and modification time of every source file of the package.

    It changes when the code does; a zygote with another digest is replaced before it forks.
    """
    digest = hashlib.sha256()
    root = Path(megascale.__file__).parent
    for path in sorted(root.rglob("*.py")):
        stat = path.stat()
        digest.update(f"{path.relative_to(root)}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
