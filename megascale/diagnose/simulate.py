"""Nodes that are processes on this machine, to try the test of several nodes without a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Final

from megascale.errors import UnreachableError

_START_S: Final = 120.0
_STOP_S: Final = 5.0


@contextlib.asynccontextmanager
async def simulated_nodes(count: int, faults: Mapping[int, str]) -> AsyncIterator[list[tuple[str, int]]]:
    """Start `count` nodes on loopback; their addresses. They end with the block.

    Args:
        faults: what to inject, by node number.

    Raises:
        UnreachableError: a node did not start.
    """
    processes: list[asyncio.subprocess.Process] = []
    try:
        for number in range(count):
            fault = ("--inject", faults[number]) if number in faults else ()
            processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "megascale.diagnose", "--serve", "127.0.0.1:0", "--threads", "1"),
                    *("--name", f"node-{number}", *fault),
                    stdout=asyncio.subprocess.PIPE,
                )
            )
        yield list(await asyncio.gather(*(_address(process) for process in processes)))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(*(process.wait() for process in processes))


async def _address(process: asyncio.subprocess.Process) -> tuple[str, int]:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            line = await process.stdout.readline()
        document = json.loads(line)
    except (TimeoutError, ValueError) as error:
        raise UnreachableError(f"a simulated node did not start within {_START_S:g} s") from error
    return str(document["host"]), int(document["port"])
