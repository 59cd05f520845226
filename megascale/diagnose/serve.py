"""A node that waits to be tested: `python -m megascale.diagnose --serve HOST:PORT`.

One coordinator at a time tells it to check itself or to take part in a pair; it never dials out but to the
partner of a pair.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from megascale.diagnose.node import Options, examine
from megascale.diagnose.wire import Line, welcome
from megascale.diagnose.worker_client import Worker, WorkerGoneError, WorkerInfo
from megascale.errors import InputError, UnreachableError

_LINE_BYTES: Final = 1 << 20
_PAIR_SECONDS: Final = 0.25
_REAP_S: Final = 2.0


class NodeServer:
    """Serves the checks of this node until it is cancelled.

    Args:
        once: end after the first coordinator.
    """

    def __init__(self, name: str, options: Options, token: bytes, *, once: bool = False) -> None:
        self._name = name
        self._options = options
        self._token = token
        self._once = once
        self._worker = Worker(options.fault)
        self._info = WorkerInfo(0, "", "")
        self._busy = asyncio.Lock()
        self._done = asyncio.Event()

    async def run(self, host: str, port: int, on_ready: Callable[[str, int], object]) -> None:
        """Start the worker, listen, serve.

        Raises:
            InputError: the address cannot be listened on.
            UnreachableError: the worker cannot be started.
        """
        async with self._worker:
            self._info = await self._worker.start()
            try:
                server = await asyncio.start_server(self._session, host, port, limit=_LINE_BYTES)
            except OSError as error:
                raise InputError(f"--serve {host}:{port}: cannot listen there: {error.strerror}") from error
            async with server:
                on_ready(*server.sockets[0].getsockname()[:2])
                await self._done.wait()

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        try:
            if self._busy.locked():
                await line.send({"error": "another coordinator is testing this node"})
                return
            async with self._busy:
                await self._converse(line)
        except (ConnectionError, TimeoutError):
            return
        finally:
            await line.close()

    async def _converse(self, line: Line) -> None:
        info = self._info
        hello = {"node": self._name, "address": line.local_host, "gpus": info.gpus, "torch": info.torch}
        await welcome(line, self._token, hello | {"ranks": info.gpus or 1})
        try:
            while True:
                request = await line.receive()
                await line.send({"id": request.get("id"), **await self._serve(line, request)})
        finally:
            if self._once:
                self._done.set()

    async def _serve(self, line: Line, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if not self._worker.alive:  # it was ended because it did not answer
                self._info = await self._worker.start()
            if request.get("op") == "examine":
                found = await examine(self._worker, self._info, self._options, line.local_host)
                return {"hardware": found.hardware, "answers": found.answers}
            if request.get("op") == "pair":
                return {"ranks": await self._pair(line, request)}
        except (WorkerGoneError, UnreachableError) as error:
            return {"error": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            return {"error": f"bad request: {error!r}"}
        return {"error": f"unknown request {request.get('op')!r}"}

    async def _pair(self, line: Line, request: dict[str, Any]) -> list[dict[str, Any]]:
        """This node's ranks of an all-reduce with another node."""
        loop = asyncio.get_running_loop()
        sending: list[asyncio.Task[None]] = []

        def send_port(port: int) -> None:
            sending.append(loop.create_task(line.send({"id": request["id"], "port": port})))

        first, timeout_s = int(request["first"]), float(request["timeout"])
        fields = {
            "first": first,
            "ranks": self._info.gpus or 1,
            "size": int(request["size"]),
            "host": str(request["host"]) if first else line.local_host,
            "port": int(request["port"]),
            "address": line.local_host,
            "threads": 1,
            "seconds": _PAIR_SECONDS,
            "timeout": timeout_s,
        }
        try:
            return await self._worker.ask("pair", fields, deadline_s=timeout_s + _REAP_S, on_port=send_port)
        finally:
            for task in sending:
                with contextlib.suppress(ConnectionError):
                    await task
