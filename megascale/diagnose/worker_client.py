"""The node's side of its worker: start, requests, end. Every wait is bounded."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megascale.errors import MegascaleError, UnreachableError

_START_S: Final = 60.0
_GRACE_S: Final = 3.0
_LINE_BYTES: Final = 1 << 20


class WorkerGoneError(MegascaleError):
    """The worker died, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker's CPU model, number of CPUs and machine identity.

    Attributes:
        gpus: GPUs that torch can see.
        cpu: model and number of usable CPUs.
    """

    gpus: int
    torch: str
    cpu: str


class Worker:
    """A process with torch that forks ranks for checks; an async context manager."""

    def __init__(self, fault: str = "") -> None:
        self._fault = fault
        self._process: asyncio.subprocess.Process | None = None
        self._next_id = 0

    @property
    def alive(self) -> bool:
        """Whether it runs and takes requests."""
        return self._process is not None and self._process.returncode is None

    async def __aenter__(self) -> Worker:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def start(self) -> WorkerInfo:
        """Start the process and wait until torch is imported.

        Raises:
            UnreachableError: it ended or said nothing; its stderr is this process's.
        """
        # Threads of numpy's BLAS would make the worker unfit to fork.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # what goes wrong is in the answers
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "megascale.diagnose.worker", self._fault),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            env=environment,
        )
        try:
            async with asyncio.timeout(_START_S):
                first = await self._read(self._process)
        except (WorkerGoneError, TimeoutError) as error:
            await self.close()
            raise UnreachableError(
                f"the process of the checks did not start within {_START_S:g} s; "
                "does `python -c 'import torch'` work?"
            ) from error
        return WorkerInfo(first["gpus"], first["torch"], first["cpu"])

    async def ask(
        self,
        op: str,
        fields: Mapping[str, object],
        *,
        deadline_s: float,
        on_port: Callable[[int], object] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """Run one check; answers of its ranks, which the worker ends after `deadline_s`.

        Args:
            on_port: called with the port of the store, if this side has it.

        Raises:
            WorkerGoneError: no answer even some seconds after the deadline; the worker is ended then.
        """
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            raise WorkerGoneError("the process of the checks is gone")
        self._next_id += 1
        request = {"id": self._next_id, "op": op, "deadline": deadline_s, **fields}
        try:
            async with asyncio.timeout(deadline_s + _GRACE_S):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                await process.stdin.drain()
                while (answer := await self._read(process)).get("ranks") is None:
                    on_port(answer["port"])
        except (TimeoutError, ConnectionError) as error:
            await self.close()
            raise WorkerGoneError(
                f"the process of the checks did not answer within {deadline_s:g} s"
            ) from error
        ranks: list[dict[str, Any]] = answer["ranks"]
        return ranks

    async def close(self) -> None:
        """End it; its ranks end with it."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            process.kill()
        try:
            async with asyncio.timeout(_GRACE_S):
                await process.wait()
        except TimeoutError:  # stuck in the kernel; nobody can end it
            return

    async def _read(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise WorkerGoneError("the process of the checks ended unexpectedly")
        answer: dict[str, Any] = json.loads(line)
        return answer


def usable_cpus() -> int:
    """CPUs this process may use: its affinity, and the CPU quota of its control group."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, -(-int(quota) // int(period))))
