"""Measures how fast this node computes, by timing matrix products in a process beside the ranks."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Final

from megascale.agent.processes import noted_as_helper

_CHECK: Final = "gemm"


async def node_speed(seconds: float, deadline_s: float) -> float:
    """Measure in a subprocess and return the rate of the node's slowest device.

    Args:
        seconds: how long each device is measured.
        deadline_s: seconds after which the subprocess is killed.

    Returns:
        0.0 if there was no result before the deadline.

    Raises:
        OSError: the measurement cannot be started.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "megascale.agent.gemm_benchmark",
        str(seconds),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        with noted_as_helper(process.pid):
            async with asyncio.timeout(deadline_s):
                out, _ = await process.communicate()
                return float(out)
    except (TimeoutError, ValueError):
        return 0.0
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def measured(seconds: float) -> float:
    """Time matrix products for `seconds` on each device of this node; returns the slowest device's rate."""
    import torch

    from megascale.diagnose.measure import measure_device

    torch.set_num_threads(1)
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
    rates = []
    for name in names:
        figures = measure_device(torch.device(name), seconds=seconds, host="127.0.0.1")
        rates.append(next(figure.value for figure in figures if figure.check == _CHECK))
    return min(rates)


if __name__ == "__main__":
    sys.stdout.write(f"{measured(float(sys.argv[1]))}\n")
